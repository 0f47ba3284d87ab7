"""The batch finder against the true limit: the most rows that pass the same trial, and the most that run at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.gpu.findings import Context, Findings
from benchmarks.training_gpu.loops import Case, request_of, write_rows

ALLOWED = 0.95
STEP = 0.01  # of the rows, upwards from what was found
CASE, DRY = Case("resnet50", "bf16", 16), Case("resnet50", "fp32", 4, scale=16)
MOST = 1 << 16


def run(context: Context, findings: Findings) -> None:
    from cluster.telemetry.events import ListSink
    from trainers.loop.distributed.joint_failure import is_out_of_memory
    from trainers.loop.setup import set_up
    from trainers.loop.tuner.batch_size_finder import _accumulate_alone, _Room, _try, probe_micro_batch

    case, most, device = (DRY, 8, torch.device("cpu")) if context.dry else (CASE, MOST, torch.device(context.device))
    request = request_of(case, write_rows(context.work / "batch", case, 4 * case.batch))
    request = replace(request, batch=request.batch.model_copy(update={"batch_size_global": most}))
    job, state = set_up(request, ListSink(), device)
    started = time.monotonic()
    report = probe_micro_batch(job, state)
    found = max(trial.rows for trial in report.trials if trial.fits)
    seconds = round(time.monotonic() - started, 2)
    findings.put("found", rows=report.rows, fitting=found, reason=report.reason, seconds=seconds)
    if context.dry:
        findings.skip("true_limit", "a CPU is not asked for its limit")
        return
    room = _Room(job, None)
    limit = climb(found, lambda rows: _try(job, state, rows, room, False).fits, context)
    findings.put("true_limit", ok=found >= ALLOWED * limit, rows=limit, share=round(found / limit, 4))

    def runs(rows: int) -> bool:
        torch.cuda.empty_cache()
        state.micro_size = rows
        error = _accumulate_alone(job, state, _window(job, rows))
        if error is not None and not is_out_of_memory(error):
            raise error
        return error is None

    last = climb(limit, runs, context)
    findings.put("until_memory_is_out", rows=last, share=round(found / last, 4))


def climb(start: int, fits: Callable[[int], bool], context: Context) -> int:
    """The most rows that fit, upwards by 1 % from a size that does. Stops when the step's time is up."""
    rows = start
    while context.left_s() > 0 and fits(rows + max(1, int(STEP * rows))):
        rows += max(1, int(STEP * rows))
    return rows


def _window(job, rows):  # type: ignore[no-untyped-def]
    import numpy as np

    from trainers.loop.data.sampler import Window

    return Window(0, 0, np.resize(np.arange(job.train.num_rows), rows), 0, rows)
