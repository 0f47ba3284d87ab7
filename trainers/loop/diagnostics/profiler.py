"""A window of updates through torch.profiler: `train.profile_updates`, one trace a worker.

Invariant: tracing changes no number; without it nothing is called.

Covered: CPU and CUDA activity, in Chrome's trace format. Not covered: evaluation and checkpoints between epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from cluster.telemetry.events import Message
from trainers.loop.state import Job

WAIT_UPDATES, WARM_UPDATES = 3, 2  # the first updates allocate; the profiler's own start is not to be seen


@contextmanager
def profiled(job: Job) -> Iterator[Callable[[], None]]:
    """Around the epochs. Yields what is called before each update."""
    updates, folder = job.request.train.profile_updates, job.request.traces
    if updates is None or folder is None:
        yield lambda: None
        return
    path = folder / f"trace-{job.world.rank}.json"

    def export(recorded: torch.profiler.profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(path))
        if job.world.rank == 0:
            text = f"{updates} updates are traced in {path}: open it in ui.perfetto.dev"
            job.sink.emit(Message(stage=job.request.stage, text=text))

    plan = torch.profiler.schedule(wait=WAIT_UPDATES, warmup=WARM_UPDATES, active=updates, repeat=1)
    # acc_events: there is one cycle; torch 2.11 warns that others would be forgotten
    with torch.profiler.profile(schedule=plan, on_trace_ready=export, acc_events=True) as recording:
        yield recording.step
