"""Before the first update: the micro-batch and the learning rate that the request leaves open."""

from __future__ import annotations

from cluster.telemetry.events import Message
from trainers.loop.state import Job, State
from trainers.loop.tuner.batch_size_finder import size_micro_batch
from trainers.loop.tuner.learning_rate_finder import RANGE_REASON, range_test


def tune(job: Job, state: State) -> None:
    """What a run that starts anew is to find out: its micro-batch, its learning rate. Collective."""
    texts = []
    if job.request.sizing is not None:
        report = size_micro_batch(job, state)
        state.micro_size, state.micro_reason = report.rows, report.reason
        texts.append(f"micro-batches of {report.rows} rows a worker, because {report.reason}")
    if job.request.find_learning_rate and (rate := range_test(job, state).suggestion) > 0:
        optimizer = job.request.train.optimizer
        state.learning_rate_found = rate * optimizer.learning_rate / job.peak_learning_rate  # before `scaling`
        texts.append(f"learning rate {state.learning_rate_found:.3g}: {RANGE_REASON}")
    if job.world.rank == 0:
        for text in texts:
            job.sink.emit(Message(level="info", stage=job.request.stage, text=text))
