"""When callbacks of the user's are called, and what they see.

    class Record:
        ranks = "first"                                   "all": an object on every worker

        def __init__(self, **arguments): ...
        def after_update(self, training): ...             after each update that was made
        def after_epoch(self, training, metrics): ...     after validation; True ends the training
        def after_checkpoint(self, training, path): ...   the folder is whole, under its final name
        def state_dict(self): ...                         JSON, kept in every checkpoint
        def load_state_dict(self, state): ...

Invariant: each method is optional; over resumes and rollbacks `after_update` sees each update of the training that
counts exactly once, as far as its state goes. An error of one of them on one worker ends all, as one of the model does.

Covered: one process and several. Not covered: what callbacks change: the weights are theirs to keep equal on
all workers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from cluster.telemetry.events import EpochFinished
from trainers.loop.distributed.joint_failure import agreed
from trainers.loop.distributed.memory_short import caught
from trainers.loop.state import Job, State, UpdateReport


class Training:
    """What a callback is given: numbers of the present moment. The same object at every call."""

    def __init__(self, job: Job, state: State) -> None:
        self._job, self._state = job, state
        self._report: UpdateReport | None = None
        self._ended = False

    @property
    def epoch(self) -> int:
        """Counted from 1: the present one, in `after_epoch` the one that has ended."""
        return self._state.cursor.epoch + (not self._ended)

    @property
    def epochs(self) -> int:
        return self._job.num_epochs

    @property
    def update(self) -> int:
        """Updates made so far, over all epochs."""
        return self._state.cursor.update

    @property
    def updates(self) -> int:
        """Of the whole training."""
        return self._job.updates_total

    @property
    def rank(self) -> int:
        return self._job.world.rank

    @property
    def workers(self) -> int:
        return self._job.world.size

    @property
    def loss(self) -> float:
        """Mean over the items of the last update, over all workers; NaN before the first."""
        report = self._report
        return report.loss_sum / report.weight if report and report.weight else float("nan")

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        return self._report.learning_rate if self._report else 0.0

    @property
    def gradient_norm(self) -> float:
        """Of the last update, before clipping."""
        return self._report.gradient_norm if self._report else float("nan")

    @property
    def model(self) -> nn.Module:
        """On a GPU the next update may already be under way when an update's numbers are there."""
        return self._state.model


class CallbackRunner:
    """Calls the callbacks of a run at its moments. An error is noted, and raised where all workers meet."""

    def __init__(self, job: Job, state: State) -> None:
        self.job, self.state, self.training = job, state, Training(job, state)
        self._update, self._epoch, self._checkpoint = (
            [method for each in state.callbacks if callable(method := getattr(each.callback, name, None))]
            for name in ("after_update", "after_epoch", "after_checkpoint")
        )

    @property
    def on_update(self) -> Callable[[UpdateReport], None] | None:
        """What is called after an update was made; None where nothing is."""
        return self._updated if self._update else None

    def _updated(self, report: UpdateReport) -> None:
        self.training._report = report
        self._guarded(self._call_updated)

    def _call_updated(self) -> None:
        for method in self._update:
            method(self.training)

    def epoch_ended(self, event: EpochFinished) -> bool:
        """Whether one of this worker's ends the training. Collective where the spec has callbacks."""
        if not self.job.request.train.callbacks:
            return False
        answers: list[Any] = []
        self.training._ended = True
        self._guarded(lambda: answers.extend([method(self.training, dict(event.metrics)) for method in self._epoch]))
        self.training._ended = False
        agreed("Cannot go on after the epoch", self.state.failure, self.job.world, self.job.device)
        return any(answer is True for answer in answers)

    def training_ended(self) -> None:
        """Raises what the last calls have raised. Collective where the spec has callbacks."""
        if self.job.request.train.callbacks:
            agreed("Cannot end the training", self.state.failure, self.job.world, self.job.device)

    def checkpointed(self, path: Path) -> None:
        if self._checkpoint:
            self._guarded(lambda: [method(self.training, path) for method in self._checkpoint])

    def _guarded(self, work: Callable[[], object]) -> None:
        error = caught(work)
        if error is None:
            return
        if self.job.world.size == 1:
            raise error
        self.state.failure = self.state.failure or error
