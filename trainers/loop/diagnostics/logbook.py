"""Training progress at an interval: loss, learning rate, speed, time left, use of the device. Rank 0 emits.

Invariant: the logged loss is the mean over the items of the windows since the last record, over all workers: it does
not depend on workers or micro-batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.telemetry.events import TrainStep
from trainers.loop.diagnostics.utilization import Meter
from trainers.loop.state import Job, State, UpdateReport


class Logbook:
    """One epoch's records."""

    def __init__(
        self, job: Job, state: State, meter: Meter, then: Callable[[UpdateReport], None] | None = None
    ) -> None:
        """`then` is called after each update that was made."""
        self.job, self.state, self.meter, self.then = job, state, meter, then
        self.every = job.request.train.log_every_updates
        self.windows = job.num_windows(state.cursor.epoch)
        self._clear()

    def note(self, report: UpdateReport) -> None:
        """After an update."""
        self.loss_sum += report.loss_sum if report.made else 0.0
        self.weight += report.weight if report.made else 0.0
        self.updates += 1
        self.rows += len(report.window.rows)
        last = report.window.index + 1 >= self.windows
        if (self.updates % self.every == 0 or last) and self.weight > 0:
            if self.job.world.rank == 0:
                self._emit(report)
            self._clear()
        if report.made and self.then:
            self.then(report)

    def _emit(self, report: UpdateReport) -> None:
        request, cursor, total = self.job.request, self.state.cursor, self.job.updates_total
        seconds = max(time.monotonic() - self.since, 1e-9)
        samples_per_s = self.rows / seconds
        self.job.sink.emit(
            TrainStep(
                stage=request.stage,
                epoch=cursor.epoch + 1,
                epochs=self.job.num_epochs,
                update=cursor.update,
                updates=total,
                loss=self.loss_sum / self.weight,
                learning_rate=report.learning_rate,
                samples_per_s=samples_per_s,
                eta_s=seconds / self.updates * max(0, total - cursor.update),
                extra={
                    "gradient_norm": report.gradient_norm,
                    "data_wait_share": min(1.0, (self.job.train.wait_s - self.waited) / seconds),
                    **self.meter.read(samples_per_s),
                },
            )
        )

    def _clear(self) -> None:
        self.loss_sum, self.weight, self.updates, self.rows = 0.0, 0.0, 0, 0
        self.since, self.waited = time.monotonic(), self.job.train.wait_s
