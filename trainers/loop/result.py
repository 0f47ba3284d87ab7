"""What a training run returns, and its files: `weights.safetensors`, `history.json`. Rank 0 writes them, the launcher
reads them.

Invariant: `history.json` is written last and atomically: where it is, the weights are whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cluster.atomic import write_bytes, write_json
from cluster.bundle.files import WEIGHTS
from cluster.telemetry.events import EpochFinished
from trainers.loop.checkpointing.folder import decode_floats, encode_floats

HISTORY = "history.json"
SPEED = "speed.json"  # removed when read: times in a stage's folder would change its digest


@dataclass(frozen=True)
class FitResult:
    """What came out. The same on every worker."""

    weights: dict[str, torch.Tensor]
    """State dict of the kept epoch on the CPU (the EMA's where there is one)."""
    history: list[EpochFinished]
    metrics: dict[str, float]
    """Metrics of the kept epoch."""
    best_epoch: int
    """Number, from 1, of the kept epoch."""
    updates: int
    """Optimizer steps that were made."""
    skipped_updates: int
    """Windows that were left out because their gradients were not finite or they held no valid item."""
    num_parameters: int
    stopped_early: bool = False
    micro_batch: int = 0
    """Rows of a micro-batch at the end: what a probe found, or less where memory became short."""
    micro_batch_reason: str = ""
    """Of the probe; empty where there was none."""
    learning_rate_found: float | None = None
    """`optimizer.learning_rate` by the range test; None where there was none."""
    details: dict[str, float] = field(default_factory=dict)
    """seconds, samples_per_s, … of this process's part of the run."""


def write_result(folder: Path, result: FitResult) -> None:
    """Write both files."""
    from safetensors.torch import save  # here: benchmarks/gpu trains without it

    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, save({name: tensor.contiguous() for name, tensor in result.weights.items()}))
    write_json(
        folder / HISTORY,
        encode_floats(
            {
                "epochs": [{"epoch": e.epoch, "update": e.update, "metrics": e.metrics} for e in result.history],
                "stage": result.history[-1].stage,
                "num_epochs": result.history[-1].epochs,
                "metrics": result.metrics,
                "best_epoch": result.best_epoch,
                "updates": result.updates,
                "skipped_updates": result.skipped_updates,
                "num_parameters": result.num_parameters,
                "stopped_early": result.stopped_early,
                "micro_batch": result.micro_batch,
                "micro_batch_reason": result.micro_batch_reason,
                "learning_rate_found": result.learning_rate_found,
            }
        ),
    )
    write_json(folder / SPEED, result.details)


def read_result(folder: Path) -> FitResult:
    """What `write_result` wrote."""
    from safetensors.torch import load_file

    raw = decode_floats(json.loads((folder / HISTORY).read_text(encoding="utf-8")))
    history = [
        EpochFinished(stage=raw["stage"], epochs=raw["num_epochs"], **epoch)  # time_s is that of reading
        for epoch in raw["epochs"]
    ]
    return FitResult(
        weights=load_file(folder / WEIGHTS),
        history=history,
        metrics=raw["metrics"],
        best_epoch=raw["best_epoch"],
        updates=raw["updates"],
        skipped_updates=raw["skipped_updates"],
        num_parameters=raw["num_parameters"],
        stopped_early=raw["stopped_early"],
        micro_batch=raw["micro_batch"],
        micro_batch_reason=raw["micro_batch_reason"],
        learning_rate_found=raw["learning_rate_found"],
        details=_take_speed(folder / SPEED),
    )


def _take_speed(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    details = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return details
