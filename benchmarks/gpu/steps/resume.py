"""A training that is interrupted and goes on, against one that was not: the same bytes with `train.deterministic`,
close without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu.findings import Context, Findings
from benchmarks.training_gpu.loops import Case, request_of, write_rows

CASES = (
    Case("resnet50", "fp32", 16, scale=2),
    Case("resnet50", "bf16", 16, scale=2),
    Case("resnet50", "fp16", 16, scale=2),
    Case("bert_base", "bf16", 16, scale=3),
)
DRY = (Case("resnet50", "fp32", 4, scale=16),)
WINDOWS, EPOCHS, CUT_AFTER = 4, 2, 5
CLOSE = 0.05
"""Relative distance of all weights that a run without `deterministic` may have: order of additions over eight updates
of Adam, whose first steps make rounding of small gradients visible."""


def run(context: Context, findings: Findings) -> None:
    from cluster.errors import MantaError

    device = torch.device(context.device)
    for case in DRY if context.dry else CASES:
        for deterministic in (True, False):
            name = f"{case.network}_{case.precision}_{'deterministic' if deterministic else 'plain'}"
            folder = context.work / "resume" / name
            try:
                straight, resumed = both(case, folder, device, deterministic=deterministic)
            except MantaError as error:
                findings.put(name, ok=False, error=error.message)
                continue
            off = distance(straight, resumed)
            equal = all(torch.equal(straight[key], resumed[key]) for key in straight)
            findings.put(name, ok=equal if deterministic else off <= CLOSE, equal_bytes=equal, distance=off)


def both(
    case: Case, folder: Path, device: torch.device, *, deterministic: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of a training in one piece, and of one that was cut and went on."""
    from cluster.errors import InterruptedRunError
    from cluster.spec.train import TrainSpec
    from cluster.telemetry.events import ListSink
    from trainers.loop.loop import fit
    from trainers.loop.parts.deterministic import prepare_process

    plain = request_of(case, write_rows(folder / "data", case, WINDOWS * case.batch))
    options = plain.train.model_dump(mode="json") | {"epochs": EPOCHS, "deterministic": deterministic, "keep": "last"}
    request = replace(plain, train=TrainSpec.model_validate_json(json.dumps(options)))
    prepare_process(request.train)
    straight = fit(request, sink=ListSink(), device=device).weights
    cut = replace(request, checkpoints=folder / "checkpoints")
    asked = iter(range(CUT_AFTER))
    try:
        fit(cut, sink=ListSink(), device=device, interrupt=lambda: next(asked, None) is None)
    except InterruptedRunError:
        pass
    else:
        raise AssertionError("the training was not interrupted")
    return straight, fit(cut, sink=ListSink(), device=device).weights


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """‖a - b‖ / ‖a‖ over all floating-point tensors."""
    pairs = [(one[name].double(), other[name].double()) for name in one if one[name].is_floating_point()]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return (apart / max(1e-30, sum(float(a.square().sum()) for a, _ in pairs))) ** 0.5
