"""What a stage is: a function of a `StageContext` that fills a folder and returns facts. stages.py lists them.

A stage function
* reads the resolved spec (`context.run_resolved.spec`) and what earlier stages left (`context.facts(EvaluateFacts)`,
  `context.files`);
* writes all of its files into `context.folder`, which becomes `stages/<name>/` only when the stage has returned;
* emits progress to `context.events` and returns a `StageResult`;
* raises an error of `cluster.errors` for what the user can mend.

It may be called again after a crash with the same digest: what it left in `context.folder` is still there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from cluster.errors import InterruptedRunError
from cluster.spec.resolve import HostFacts, ResolvedRun
from cluster.spec.run import RunSpec
from cluster.store.run_folder import RunFolder, StageRecord
from cluster.store.stage_facts import StageFacts
from cluster.telemetry.events import EventSink, Progress

Facts = TypeVar("Facts", bound=StageFacts)


def _no_ray() -> bool:
    return False


def _ray_stands() -> bool:
    return True


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may know. Made by the driver, read by the stage."""

    stage: str
    run: RunFolder
    spec: RunSpec
    """The spec as written; only the check stage needs it."""
    resolved: ResolvedRun | None
    """The run without `auto`; None in the check stage alone, which makes it."""
    host: HostFacts
    folder: Path
    """Write here. Survives a crash with the same digest."""
    digest: str
    """Digest of this stage's inputs: names caches and checkpoints that belong to just these inputs."""
    records: Mapping[str, StageRecord]
    """Finished earlier stages."""
    events: EventSink
    ensure_ray: Callable[[], bool] = _no_ray
    """Blocks until the run's Ray session stands, which it starts if need be; True. False outside of a run, where
    there is none. Stages with `needs_ray` find it standing; others call this when they turn out to need it."""
    owns_host: bool = False
    """Whether the run has this host for itself: its Ray is private, or not there."""
    later: tuple[str, ...] = ()
    """Stages that will come after this one."""
    early: Any = None
    """What the stage's early entry point has started (stages.py); the stage ends it."""

    def __getstate__(self) -> dict[str, Any]:
        """A context travels within closures to processes of Ray: there it stands, and what starts it stays behind."""
        return {**self.__dict__, "ensure_ray": _ray_stands, "early": None}

    @property
    def run_resolved(self) -> ResolvedRun:
        """`resolved` for stages after check, where it is never None."""
        assert self.resolved is not None, "only the check stage runs without a resolved spec"
        return self.resolved

    def facts(self, model: type[Facts]) -> Facts | None:
        """Facts of an earlier stage; None where it has not run, or was skipped."""
        return model.of(self.records)

    def files(self, stage: str) -> Path:
        """Folder of an earlier stage's files."""
        return self.run.stage(stage)

    def progress(self, done: float, total: float | None = None, unit: str = "", text: str = "") -> None:
        """Tell the display how far this stage is."""
        self.events.emit(Progress(stage=self.stage, done=done, total=total, unit=unit, text=text))


@dataclass(frozen=True)
class StageResult:
    """What a stage returns."""

    facts: StageFacts = field(default_factory=StageFacts)
    """Finite numbers only; part of the output digest, so no times and no absolute paths in it. What they change of the
    resolved run, the model of the facts knows (`StageFacts.changes`)."""
    headline: str = ""
    """One line for the display and the table."""
    resolved: ResolvedRun | None = None
    """Set by the stage that makes it, check; it runs anew in every run."""
    status: Literal["done", "skipped"] = "done"
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-able results that later stages do not depend on (durations, throughputs)."""


def interrupted(run: RunFolder) -> InterruptedRunError:
    """The error of a run that was stopped, whichever of its processes raises it."""
    return InterruptedRunError(
        f"Run '{run.name}' was stopped",
        found="Ctrl-C or SIGTERM",
        rule="everything finished is kept",
        remedy="Run the same command again to go on from here.",
    )
