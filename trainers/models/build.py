"""From a model spec and a signature to a torch module.

Invariant: the same spec, signature and torch seed give the same weights; `forward(*inputs in signature order)`
returns (N, num_outputs) float32 whatever the inputs' datatypes are; outside of training in the target's own unit.

Covered: the shipped families. Not covered: pruned models and students (their factories come by name in a FitRequest).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.bundle.target import TargetTransform
from cluster.errors import MemoryShortError, ModelError
from cluster.spec.model import ModelSpec
from trainers.models.cnn import build_cnn
from trainers.models.mlp import build_mlp
from trainers.models.target import TransformedTarget
from trainers.models.transformer import build_transformer
from trainers.models.zoo import build_timm, build_torchvision, build_transformers

Family = Callable[..., nn.Module]
FAMILIES: dict[str, Family] = {
    "mlp": build_mlp,
    "cnn": build_cnn,
    "transformer": build_transformer,
    "timm": build_timm,
    "torchvision": build_torchvision,
    "transformers": build_transformers,
}
"""family -> `function(spec, inputs, num_outputs) -> nn.Module`."""


def build_model(
    spec: ModelSpec, inputs: tuple[TensorSpec, ...], num_outputs: int, target: TargetTransform | None = None
) -> nn.Module:
    """The untrained module. Raises ModelError for inputs that the family cannot take, MemoryShortError for its size.

    `target`: how its quantity is learned.
    """
    if spec.family == "auto":
        raise ModelError(
            "Cannot build the model",
            found="model.family is still 'auto'",
            rule="a family is decided by resolving the spec",
            remedy="Pass the model section of a resolved run.",
        )
    try:
        network = FAMILIES[spec.family](spec, inputs, num_outputs)
        return network if target is None else TransformedTarget(network, target)
    except (RuntimeError, MemoryError) as error:  # torch raises the first where an allocation fails
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise MemoryShortError(
            f"Cannot build the model of family '{spec.family}'",
            found=f"its weights do not fit into memory ({str(error).splitlines()[0]})",
            remedy="Make the model smaller (its width, layers or hidden), or use a larger machine.",
        ) from error


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
