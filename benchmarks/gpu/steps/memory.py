"""The estimate that `manta explain` prints against the most that torch's allocator has held over three updates."""

from __future__ import annotations

import torch

from benchmarks.gpu.findings import Context, Findings
from benchmarks.training_gpu.loops import Case, request_of, write_rows

ALLOWED = 0.10
UPDATES = 3
CASES = (
    Case("resnet50", "fp32", 64),
    Case("resnet50", "bf16", 64),
    Case("bert_base", "fp32", 32),
    Case("bert_base", "bf16", 32),
)
DRY = (Case("resnet50", "bf16", 2, scale=16), Case("bert_base", "fp32", 2, scale=12))


def run(context: Context, findings: Findings) -> None:
    device = torch.device(context.device)
    for case in DRY if context.dry else CASES:
        facts = measure(case, context, device)
        if context.dry:
            findings.put(f"{case.network}_{case.precision}", **facts, skipped="a CPU's allocator counts no peak")
            continue
        off = facts["estimate_mib"] / facts["peak_mib"] - 1
        findings.put(f"{case.network}_{case.precision}", ok=abs(off) <= ALLOWED, off=round(off, 4), **facts)


def measure(case: Case, context: Context, device: torch.device) -> dict[str, float]:
    """MiB by the estimate and by the allocator; a CPU has no peak."""
    from cluster.telemetry.events import ListSink
    from trainers.loop.loop import remaining_windows
    from trainers.loop.setup import set_up
    from trainers.loop.step import update
    from trainers.loop.tuner.memory_estimate import estimate_memory

    prepared = write_rows(context.work / f"memory_{case.network}", case, UPDATES * case.batch)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    job, state = set_up(request_of(case, prepared), ListSink(), device)
    for window in remaining_windows(job, state):
        update(job, state, window)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    estimate = estimate_memory(state.model.cpu(), job.inputs, case.batch, job.request.train, device.type)
    del state
    if device.type == "cuda":
        torch.cuda.empty_cache()
    parts = {"activations_mib": estimate.activations, "estimate_mib": estimate.total, "peak_mib": peak}
    return {"batch": case.batch, **{name: round(number / (1 << 20), 1) for name, number in parts.items()}}
