"""A small convolutional network for small images: stages of two 3×3 convolutions with batch norm, then pooling.

Covered: one image input (C, H, W) or (H, W) of any size down to 2^stages. Not covered: other image orders (NHWC).
"""

from __future__ import annotations

import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.model import CnnSpec

HEAD_CELLS = 4  # larger maps are pooled by height // 4, so that the head's size does not grow with the image


class Cnn(nn.Module):
    """(N, C, H, W) or (N, H, W) -> (N, num_outputs) float32."""

    def __init__(self, shape: tuple[int, int, int], spec: CnnSpec, num_outputs: int) -> None:
        super().__init__()
        channels, height, width = shape
        stages: list[nn.Module] = []
        for stage in range(spec.stages):
            out = spec.width << stage
            stages.append(_block(channels, out))
            stages.append(_block(out, out))
            if stage < spec.stages - 1:
                stages.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            channels = out
        pool = (max(1, height // HEAD_CELLS), max(1, width // HEAD_CELLS))
        cells = (height // pool[0], width // pool[1])
        if pool != (1, 1):  # a fixed kernel: ONNX has no adaptive pooling for sizes that do not divide
            stages.append(nn.AvgPool2d(pool))
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(channels * cells[0] * cells[1], num_outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.head.weight.dtype)
        if images.dim() == 3:
            images = images.unsqueeze(1)
        return self.head(self.dropout(self.stages(images).flatten(1)))


def build_cnn(spec: CnnSpec, inputs: tuple[TensorSpec, ...], num_outputs: int) -> nn.Module:
    """Raises ModelError when the inputs are not one image of enough pixels."""
    shape = inputs[0].item_shape
    if len(inputs) != 1 or len(shape) not in (2, 3) or min(shape) < 1:
        found = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in inputs)
        raise ModelError(
            "Cannot build a cnn",
            found=f"the inputs are {found}",
            rule="a cnn takes one image input of shape [-1, channels, height, width] or [-1, height, width]",
            remedy="Choose model.family: mlp.",
        )
    image = (1, *shape) if len(shape) == 2 else shape
    least = 1 << (spec.stages - 1)
    if min(image[1:]) < least:
        raise ModelError(
            "Cannot build a cnn",
            found=f"images have {image[1]}×{image[2]} pixels and model.stages is {spec.stages}",
            rule=f"each stage after the first halves the image; {spec.stages} stages need {least} pixels a side",
            remedy="Lower model.stages.",
        )
    return Cnn((image[0], image[1], image[2]), spec, num_outputs)


def _block(channels: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))
