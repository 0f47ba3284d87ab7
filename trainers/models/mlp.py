"""Multi-layer perceptron: all inputs flattened and joined, then Linear - ReLU - Dropout blocks.

Covered: any number of numeric inputs of fixed shape. Not covered: axes of varying length.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.model import MlpSpec


class Mlp(nn.Module):
    """(N, …) inputs -> (N, num_outputs) float32."""

    def __init__(self, num_features: int, hidden: tuple[int, ...], num_outputs: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(num_features, width), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            num_features = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(num_features, num_outputs)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        dtype = self.head.weight.dtype
        flat = [tensor.flatten(1).to(dtype) for tensor in inputs]
        return self.head(self.layers(flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)))


def build_mlp(spec: MlpSpec, inputs: tuple[TensorSpec, ...], num_outputs: int) -> nn.Module:
    """Raises ModelError for text or inputs of varying length."""
    for tensor in inputs:
        if tensor.datatype == "BYTES" or -1 in tensor.item_shape:
            raise ModelError(
                "Cannot build an mlp",
                found=f"input {tensor.name!r} is {tensor.datatype} {list(tensor.shape)}",
                rule="an mlp takes numbers of a fixed shape",
                remedy="Encode the column as numbers in the data section, or choose another family.",
            )
    num_features = sum(math.prod(tensor.item_shape) for tensor in inputs)
    return Mlp(num_features, spec.hidden, num_outputs, spec.dropout)
