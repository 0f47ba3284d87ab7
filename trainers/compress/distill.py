"""Distillation: a student learns the teacher's soft answers and the labels, on the training engine.

    loss = soft_share · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 - soft_share) · cross entropy

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015); the T² keeps the gradients of
both terms of one size. For regression both terms are squared errors.

The teacher's logits are computed once and lie beside the prepared rows as one more input, `teacher_logits`, so that any
worker reads them by row number; with augmented rows they would be of another picture, so the teacher then answers live.

With `feature_weight` the angle between the layers before the heads is added (features.py); the trained network's
features then lie behind the logits in the same input.

Covered: classification, regression, one teacher or the mean of several. Not covered: features of several teachers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cluster.atomic import new_folder, write_json
from cluster.bundle.files import open_bundle
from cluster.bundle.signature import TensorSpec
from cluster.errors import BundleError
from trainers.compress.features import WithFeatures, feature_loss
from trainers.compress.students import build_student
from trainers.data.shards import DATASET, PreparedData
from trainers.export.session import predict_graph
from trainers.models.predict import predict_torch
from trainers.models.target import answers_learned

TEACHER_INPUT = "teacher_logits"
TAUGHT_SPLITS = ("train", "validation")
Loss = Callable[[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor], torch.Tensor]


def distillation_loss(
    temperature: float,
    soft_share: float,
    num_outputs: int,
    teacher: dict[str, Any] | None = None,
    feature_weight: float = 0.0,
) -> Loss:
    """The objective that a FitRequest names.

    Args:
        num_outputs: logits; what lies behind them are features.
        teacher: arguments of `build_student` for a teacher that answers live; None reads the last input.

    Returns:
        `(inputs, outputs (N, C), targets (N,)) -> (N,)`.
    """
    live = answers_learned(build_student(**teacher)).eval().requires_grad_(False) if teacher else None
    if live is not None and feature_weight:
        live = WithFeatures(live, num_outputs).eval()

    def loss(inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        answers, outputs = _answers(live, inputs, outputs), outputs.float()
        taught, shown = answers[:, :num_outputs], answers[:, num_outputs:]
        outputs, seen = outputs[:, :num_outputs], outputs[:, num_outputs:]
        if targets.is_floating_point() and targets.dim() == 1:
            hard = (outputs[:, 0] - targets) ** 2
            soft = (outputs - taught).pow(2).mean(1)
        else:
            hard = F.cross_entropy(outputs, targets, reduction="none")
            student = F.log_softmax(outputs / temperature, dim=1)
            soft = F.kl_div(student, F.softmax(taught / temperature, dim=1), reduction="none").sum(1) * temperature**2
        mixed = soft_share * soft + (1 - soft_share) * hard
        return mixed + feature_weight * feature_loss(seen, shown) if feature_weight else mixed

    return loss


def write_teacher_shards(
    prepared: PreparedData, target: Path, module: nn.Module, teachers: tuple[str, ...], *, features: bool = False
) -> None:
    """Prepared data with one more input, the teachers' mean logits. The other arrays are links, not copies.

    `features`: the first teacher's features lie behind the logits.

    Does nothing when `target` is there: teachers answer once. Raises BundleError for a teacher of another signature.
    """
    if (target / DATASET).exists():
        return
    outputs = prepared.num_outputs
    learned = answers_learned(module)  # a loss compares learned values
    first = WithFeatures(learned, outputs).eval() if features else learned
    with new_folder(target) as folder:
        for name in TAUGHT_SPLITS:
            split = prepared.splits[name]
            answered = predict_torch(first, split.inputs)
            logits = [
                answered[:, :outputs],
                *(_learned(_bundle_logits(one, dict(split.inputs)), prepared) for one in teachers),
            ]
            for other in logits[1:]:
                if other.shape != logits[0].shape:
                    raise BundleError(
                        "Cannot distill from the teachers",
                        found=f"one answers {list(other.shape)}, the trained network {list(logits[0].shape)}",
                        rule="all teachers have the same outputs",
                    )
            (folder / name).mkdir()
            for file in (prepared.folder / name).iterdir():
                (folder / name / file.name).symlink_to(file.resolve())
            mean = np.mean(logits, axis=0, dtype=np.float32)
            answers = np.concatenate([mean, answered[:, outputs:]], axis=1)
            np.save(folder / name / f"inputs.{TEACHER_INPUT}.npy", answers)
        raw = json.loads((prepared.folder / DATASET).read_text(encoding="utf-8"))
        width = TensorSpec(name=TEACHER_INPUT, datatype="FP32", shape=(-1, answers.shape[1]))
        raw["inputs"].append(width.model_dump(mode="json"))
        raw["splits"] = {name: raw["splits"][name] for name in TAUGHT_SPLITS}
        write_json(folder / DATASET, raw)


def _answers(live: nn.Module | None, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> torch.Tensor:
    if live is None:
        return inputs[-1].float()
    live.to(outputs.device)
    with torch.no_grad():
        return live(*inputs).float()


def _learned(answers: np.ndarray, prepared: PreparedData) -> np.ndarray:
    """A bundle answers in the target's own unit."""
    return answers if prepared.target is None else prepared.target.to_learned(answers).astype(np.float32)


def _bundle_logits(folder: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What a bundle's float graph (or its default) answers."""
    bundle = open_bundle(Path(folder))
    names = {variant.name for variant in bundle.manifest.variants}
    variant = bundle.variant("fp32" if "fp32" in names else None)
    return predict_graph(bundle.path(variant.file), inputs)
