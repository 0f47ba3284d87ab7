"""When checkpoints are written and read: the loop's side of folder.py.

Invariant: all workers decide alike (due, which one to read, whether writing failed), so that none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cluster.errors import DivergedError, MantaError, PeerFailedError
from cluster.telemetry.events import CheckpointWritten, EpochFinished, Message
from trainers.loop.checkpointing import snapshot
from trainers.loop.checkpointing.folder import CheckpointFolder
from trainers.loop.distributed.collectives import gather_texts
from trainers.loop.distributed.joint_failure import agreed
from trainers.loop.state import Job, State


class Checkpointer:
    """Checkpoints of one run; without a folder it does nothing."""

    def __init__(self, job: Job, state: State) -> None:
        self.job, self.state = job, state
        train, path = job.request.train, job.request.checkpoints
        self.folder = CheckpointFolder(path, train.checkpoint, train.best) if path is not None else None
        self.on_written: Callable[[Path], None] | None = None
        """Called on every worker with the folder of a checkpoint that is there."""

    def resume(self) -> None:
        """Go on from the newest valid checkpoint; damaged ones are reported. Collective."""
        if self.folder is None:
            return
        name = ""
        if self.job.world.rank == 0:
            self.folder.take_over()
            newest, problems = self.folder.newest_valid()
            name = newest or ""
            for problem in problems:
                self._say("warning", problem)
        name = gather_texts(name, self.job.world, self.job.device)[0]
        if name:
            snapshot.restore(self.job, self.state, self.folder.read(name))
            if self.job.world.rank == 0:
                self._say("info", f"training goes on from checkpoint {name}")

    def due(self) -> bool:
        """Whether an interval inside the epoch has passed."""
        every = self.job.request.train.checkpoint.every_updates
        return self.folder is not None and every is not None and self.state.cursor.window % every == 0

    def write(self, epoch: EpochFinished | None = None) -> None:
        """Write the state. Collective; an error of rank 0 is raised on all."""
        if self.folder is None:
            return
        agreed("Cannot write a checkpoint", self.state.failure, self.job.world, self.job.device)
        taken = snapshot.take(self.job, self.state)
        error: MantaError | None = None
        if self.job.world.rank == 0:
            try:
                self._write(taken, epoch)
            except MantaError as raised:
                error = raised
        text = gather_texts(error.message if error else "", self.job.world, self.job.device)[0]
        if error:
            raise error
        if text:
            raise PeerFailedError(
                "Cannot write a checkpoint", found=f"worker 0 failed: {text}", details={"rank": 0, "traceback": text}
            )
        if self.on_written:
            self.on_written(self.folder.path / self._name)

    def roll_back(self, error: DivergedError) -> None:
        """Return to the last checkpoint and leave out the windows that diverged. Raises `error` past the budget."""
        state, faults = self.state, self.job.request.train.faults
        newest = self.folder.newest_valid()[0] if self.folder and self.job.world.rank == 0 else None
        name = gather_texts(newest or "", self.job.world, self.job.device)[0]
        if self.folder is None or not name or state.rollbacks >= faults.rollbacks:
            raise error
        bad = set(state.cursor.nonfinite)
        left_out, rollbacks = state.left_out | bad, state.rollbacks + 1
        snapshot.restore(self.job, state, self.folder.read(name))
        state.left_out, state.rollbacks = left_out, rollbacks
        self.job.train.forget_ahead()
        if self.job.world.rank == 0:
            self._say("warning", f"{error.found}; back to checkpoint {name}, leaving out {len(bad)} windows")

    @property
    def _name(self) -> str:
        return f"e{self.state.cursor.epoch:05d}-w{self.state.cursor.window:08d}"

    def _write(self, taken: snapshot.Snapshot, epoch: EpochFinished | None) -> None:
        assert self.folder is not None
        cursor = self.state.cursor
        value = epoch.metrics.get(self.folder.best.metric) if epoch else None
        path = self.folder.write(self._name, taken, value)
        self.job.sink.emit(
            CheckpointWritten(
                stage=self.job.request.stage,
                path=str(path),
                update=cursor.update,
                best=bool(epoch) and self.state.best.epoch == cursor.epoch - 1,
            )
        )

    def _say(self, level: Literal["info", "warning"], text: str) -> None:
        self.job.sink.emit(Message(level=level, stage=self.job.request.stage, text=text))
