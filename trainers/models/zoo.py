"""Networks of other libraries: timm and torchvision for images, transformers for token ids (the `zoo` extra).

Invariant: a library is imported where its family is built, never before; a name it does not know, or weights that
cannot be had, are a ModelError with the cause.

Covered: any classification network of these libraries by name, images of any number of channels, token ids with
padding 0. Not covered: weights of torchvision (they are pickles; timm has the same networks as safetensors), the
preprocessing that a pretrained network was made with (training adapts it).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.runtime.extras import require
from cluster.spec.model import TimmSpec, TorchvisionSpec, TransformersSpec
from trainers.models.transformer import PADDING_ID

RGB = 3


class ImageNetwork(nn.Module):
    """(N, C, H, W) or (N, H, W) of any number type -> (N, num_outputs) float32."""

    def __init__(self, network: nn.Module, repeat_gray: bool = False) -> None:
        super().__init__()
        self.network, self.repeat_gray = network, repeat_gray

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(next(self.network.parameters()).dtype)
        if images.dim() == 3:
            images = images.unsqueeze(1)
        if self.repeat_gray:
            images = images.expand(-1, RGB, -1, -1)
        return self.network(images)


class TokenNetwork(nn.Module):
    """(N, L) int64 ids -> (N, num_outputs) float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        real = ids != PADDING_ID
        mask = torch.cat([torch.ones_like(real[:, :1]), real[:, 1:]], dim=1)  # attention over nothing is NaN
        return self.network(input_ids=ids, attention_mask=mask.to(torch.int64)).logits


def build_timm(spec: TimmSpec, inputs: tuple[TensorSpec, ...], num_outputs: int) -> nn.Module:
    """Raises ModelError, MissingDependencyError."""
    channels = _channels("timm", inputs)
    require("timm", extra="zoo", wanted_by="model.family: timm")
    import timm

    if not spec.name.startswith("hf-hub:") and not timm.is_model(spec.name):
        raise _unknown("timm", spec.name, timm.list_models())
    try:
        network = timm.create_model(
            spec.name,
            pretrained=spec.pretrained,
            num_classes=num_outputs,
            in_chans=channels,
            drop_rate=spec.dropout,
            **spec.options,
        )
    except Exception as error:  # libraries raise anything for options and downloads they dislike
        raise _refused("timm", spec.name, error, pretrained=spec.pretrained) from error
    return ImageNetwork(network)


def build_torchvision(spec: TorchvisionSpec, inputs: tuple[TensorSpec, ...], num_outputs: int) -> nn.Module:
    """Raises ModelError, MissingDependencyError."""
    channels = _channels("torchvision", inputs)
    require("torchvision", extra="zoo", wanted_by="model.family: torchvision")
    from torchvision import models

    if channels not in (1, RGB):
        raise ModelError(
            "Cannot build a torchvision network",
            found=f"images have {channels} channels",
            rule="torchvision's networks take three; one is repeated",
            remedy="Choose model.family: timm, which takes any number.",
        )
    known = models.list_models(module=models)
    if spec.name not in known:
        raise _unknown("torchvision", spec.name, known)
    try:
        network = models.get_model(spec.name, weights=None, num_classes=num_outputs, **spec.options)
    except Exception as error:  # as above
        raise _refused("torchvision", spec.name, error) from error
    return ImageNetwork(network, repeat_gray=channels == 1)


def build_transformers(spec: TransformersSpec, inputs: tuple[TensorSpec, ...], num_outputs: int) -> nn.Module:
    """Raises ModelError, MissingDependencyError."""
    if len(inputs) != 1 or inputs[0].datatype != "INT64" or len(inputs[0].item_shape) != 1:
        found = ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in inputs)
        raise ModelError(
            "Cannot build a transformers network",
            found=f"the inputs are {found}",
            rule="it takes one input of token ids, INT64 [-1, length]",
            remedy="Leave one column that is text (data.columns declares it) and drop the others, or choose "
            "model.family: transformer.",
        )
    require("transformers", extra="zoo", wanted_by="model.family: transformers")
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values: dict[str, Any] = {"num_labels": num_outputs, "pad_token_id": PADDING_ID, **spec.options}
    try:
        if spec.pretrained:
            network = AutoModelForSequenceClassification.from_pretrained(spec.name, use_safetensors=True, **values)
        else:
            if spec.vocabulary != "auto":
                values.setdefault("vocab_size", spec.vocabulary)
            made = spec.name in CONFIG_MAPPING
            config = (AutoConfig.for_model if made else AutoConfig.from_pretrained)(spec.name, **values)
            network = AutoModelForSequenceClassification.from_config(config)
    except Exception as error:  # as above
        raise _refused("transformers", spec.name, error, pretrained=spec.pretrained) from error
    return TokenNetwork(network)


def _channels(library: str, inputs: tuple[TensorSpec, ...]) -> int:
    shape = inputs[0].item_shape
    if len(inputs) != 1 or len(shape) not in (2, 3) or inputs[0].datatype == "BYTES":
        found = ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in inputs)
        raise ModelError(
            f"Cannot build a {library} network",
            found=f"the inputs are {found}",
            rule="it takes one image input of shape [-1, channels, height, width] or [-1, height, width]",
            remedy="Choose model.family: mlp.",
        )
    return shape[0] if len(shape) == 3 else 1


def _unknown(library: str, name: str, known: Iterable[str]) -> ModelError:
    near = difflib.get_close_matches(name, list(known), n=3)
    return ModelError(
        f"Cannot build the {library} network {name!r}",
        found=f"{library} has no network of that name",
        remedy=f"Did you mean {' or '.join(near)}?" if near else f"Name one that {library} lists.",
    )


def _refused(library: str, name: str, error: Exception, *, pretrained: bool = False) -> ModelError:
    return ModelError(
        f"Cannot build the {library} network {name!r}",
        found=f"{library} says {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        remedy="Mend model.options"
        + (", or set model.pretrained: false where the weights cannot be had." if pretrained else "."),
    )
