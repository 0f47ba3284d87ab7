"""Networks that compression trains, built by name from JSON-able arguments: pruned ones, students, dense ones.

Invariant: the same arguments build the same module on any worker; nothing is pickled.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.bundle.target import TargetTransform
from cluster.errors import ModelError
from cluster.spec.model import ModelSpec
from trainers.compress.features import WithFeatures, network_weights
from trainers.compress.prune.plan import Plan, apply_plan
from trainers.models import build_model
from trainers.models.weights import load_weights

WIDTH_MULTIPLE = 8  # vector units work on 8 or 16 channels at a time
_MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


class Taught(nn.Module):
    """A network whose last input, the teacher's logits, is for the loss alone."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.student(*inputs[:-1])


def build_student(
    model: dict[str, Any],
    inputs: list[dict[str, Any]],
    num_outputs: int,
    plan: Plan | None = None,
    weights: str | None = None,
    lesson: dict[str, int] | None = None,
    target: dict[str, Any] | None = None,
) -> nn.Module:
    """The factory that a FitRequest names.

    Args:
        model: a `model` section without auto, as JSON.
        plan: cut the module by it.
        weights: safetensors file of the weights to begin with, in the shapes before the plan.
        lesson: how it is taught: `answers` 1 takes the teacher's logits as a last input; `features` of a width make it
            answer as many while it is trained, to be matched with the teacher's.
        target: how a quantity is learned, as JSON.
    """
    spec = _MODEL.validate_python(_tuples(model))
    shapes = tuple(TensorSpec.model_validate(_tuples(item)) for item in inputs)
    learned = TargetTransform.model_validate(target) if target else None
    module = build_model(spec, shapes, num_outputs, learned)
    if weights is not None:
        load_weights(module, Path(weights))
    if plan is not None:
        apply_plan(module, plan)
    lesson = lesson or {}
    if lesson.get("features"):
        module = WithFeatures(module, num_outputs, lesson["features"])
    return Taught(module) if lesson.get("answers") else module


def student_arguments(
    model: ModelSpec,
    inputs: tuple[TensorSpec, ...],
    num_outputs: int,
    target: TargetTransform | None = None,
    **more: Any,
) -> dict[str, Any]:
    """JSON-able arguments of `build_student`."""
    described = [tensor.model_dump(mode="json") for tensor in inputs]
    if target is not None:
        more["target"] = target.model_dump(mode="json")
    return {"model": model.model_dump(mode="json"), "inputs": described, "num_outputs": num_outputs, **more}


def untaught(weights: dict[str, torch.Tensor], *, features: bool = False) -> dict[str, torch.Tensor]:
    """Names without the wrappers' prefixes, and without what only served the teaching."""
    own = {name.removeprefix("student."): tensor for name, tensor in weights.items()}
    return network_weights(own) if features else own


def scaled_model(model: ModelSpec, width: float) -> ModelSpec:
    """The same family, `width` times as wide. Raises ModelError for a family without a width."""
    if model.family == "cnn":
        return model.model_copy(update={"width": _scaled(model.width, width)})
    if model.family == "transformer":
        step = math.lcm(WIDTH_MULTIPLE, model.heads)
        return model.model_copy(update={"width": max(step, round(model.width * width / step) * step)})
    if model.family == "mlp":
        return model.model_copy(update={"hidden": tuple(_scaled(one, width) for one in model.hidden)})
    raise ModelError(
        "Cannot make a narrower network",
        found=f"family {model.family!r} has no width",
        rule="students and dense rivals are families with a width: cnn, mlp, transformer",
        remedy="Leave 'distill' out of compress.recipes and set compress.dense_rival to false.",
    )


def _scaled(size: int, width: float) -> int:
    return max(WIDTH_MULTIPLE, round(size * width / WIDTH_MULTIPLE) * WIDTH_MULTIPLE)


def _tuples(value: Any) -> Any:
    """Lists as tuples: strict specs take no lists from Python."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
