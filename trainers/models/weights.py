"""The trained torch module, rebuilt from its spec and `weights.safetensors`.

Invariant: every weight comes from the file, by name and shape; nothing is downloaded.

Covered: any family, on the CPU. Not covered: checkpoints of a running training (trainers/loop).
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cluster.bundle.files import WEIGHTS
from cluster.bundle.signature import TensorSpec
from cluster.bundle.target import TargetTransform
from cluster.errors import ModelError
from cluster.spec.model import ModelSpec
from trainers.models.build import build_model


def load_module(
    spec: ModelSpec,
    inputs: tuple[TensorSpec, ...],
    num_outputs: int,
    folder: Path,
    target: TargetTransform | None = None,
) -> nn.Module:
    """The module of `spec` with the weights of `folder`, on the CPU and in eval mode. Raises ModelError.

    `target`: how its quantity was learned.
    """
    if getattr(spec, "pretrained", False):  # the trained weights replace the library's: nothing is to be downloaded
        spec = spec.model_copy(update={"pretrained": False})
    module = build_model(spec, inputs, num_outputs, target)
    load_weights(module, folder / WEIGHTS)
    return module.eval()


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from a safetensors file; every name and shape must match. Raises ModelError."""
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError, FileNotFoundError) as error:
        raise ModelError(
            f"Cannot load the weights {path}",
            found=" ".join(str(error).split()),
            rule="the weights must be those of the model in the spec",
            remedy="Train again, or use the spec that the weights were trained with.",
        ) from error
