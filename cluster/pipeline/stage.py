"""What a stage is: a function of a `StageContext` that fills a folder and returns facts.

A stage function
* reads the resolved spec (`context.resolved.spec`) and what earlier stages left (`context.facts`, `context.files`);
* writes all of its files into `context.folder`, which becomes `stages/<name>/` only when the stage has returned;
* emits progress to `context.events` and returns a `StageResult`;
* raises an error of `cluster.errors` for what the user can mend.

It may be called again after a crash with the same digest: what it left in `context.folder` is still there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.errors import InterruptedRunError
from cluster.spec.compress import TRAINING
from cluster.spec.resolve import HostFacts, ResolvedRun
from cluster.spec.run import RunSpec
from cluster.store.run_folder import RunFolder, StageRecord
from cluster.telemetry.events import EventSink, Progress


def _no_ray() -> bool:
    return False


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
    there is none. Stages that `needs_ray` names find it standing; others call this when they turn out to need it."""
    owns_host: bool = False
    """Whether the run has this host for itself: its Ray is private, or not there."""
    later: tuple[str, ...] = ()
    """Stages that will come after this one."""
    early: Any = None
    """What the stage's early entry point has started (cluster/entrypoints.py); the stage ends it."""

    @property
    def run_resolved(self) -> ResolvedRun:
        """`resolved` for stages after check, where it is never None."""
        assert self.resolved is not None, "only the check stage runs without a resolved spec"
        return self.resolved

    def facts(self, stage: str) -> dict[str, Any]:
        """Facts of an earlier stage. Raises KeyError if it has not run."""
        return self.records[stage].facts

    def files(self, stage: str) -> Path:
        """Folder of an earlier stage's files."""
        return self.run.stage(stage)

    def progress(self, done: float, total: float | None = None, unit: str = "", text: str = "") -> None:
        """Tell the display how far this stage is."""
        self.events.emit(Progress(stage=self.stage, done=done, total=total, unit=unit, text=text))


@dataclass(frozen=True)
class StageResult:
    """What a stage returns."""

    facts: dict[str, Any] = field(default_factory=dict)
    """JSON-able, finite numbers only; part of the output digest, so no times and no absolute paths in it."""
    headline: str = ""
    """One line for the display and the table."""
    resolved: ResolvedRun | None = None
    """The check stage sets it; a search may replace it."""
    status: Literal["done", "skipped"] = "done"
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-able results that later stages do not depend on (durations, throughputs)."""


StageFunction = Callable[[StageContext], StageResult]


def _never(spec: RunSpec, host: HostFacts) -> bool:
    return False


def _always(spec: RunSpec, host: HostFacts) -> bool:
    return True


def trains_on_ray(spec: RunSpec, host: HostFacts) -> bool:
    """One worker without a GPU trains in a process of the host, where the run has that for itself."""
    return bool(host.gpus) or spec.train.workers not in (1, "auto")


def _compresses_on_ray(spec: RunSpec, host: HostFacts) -> bool:
    """Trials that run side by side are Ray tasks; networks are trained as the train stage trains."""
    if spec.compress is None:
        return False
    side_by_side = spec.compress.concurrency > 1 and len(spec.compress.recipes) > 1
    return side_by_side or (bool(TRAINING & set(spec.compress.recipes)) and trains_on_ray(spec, host))


@dataclass(frozen=True)
class StageDefinition:
    """A stage's place in the pipeline: which parts of the spec and which stages it depends on."""

    name: str
    sections: tuple[str, ...]
    """Top-level keys of the resolved spec that change its result."""
    needs: tuple[str, ...]
    """Stages whose output it reads."""
    skip_without: str | None = None
    """Section whose absence (null) skips this stage."""
    always: bool = False
    """Run it even when nothing changed: it looks at the world, or starts something that ends with the run."""
    needs_ray: Callable[[RunSpec, HostFacts], bool] = _never
    """Whether the spec says that it needs Ray: then Ray starts while earlier stages work, and stands when it begins. An
    `auto` that is not decided yet says no. A stage that finds out later calls `context.ensure_ray`."""
    outputs: tuple[str, ...] = ()
    """Folders of the run, besides its own, that it fills: hashed into its record."""


PIPELINE: tuple[StageDefinition, ...] = (
    StageDefinition("check", ("data", "model", "train", "search", "compress", "export", "serve"), (), always=True),
    StageDefinition("prepare", ("data", "seed"), ("check",)),
    StageDefinition(
        "search", ("search", "model", "train", "seed"), ("prepare",), skip_without="search", needs_ray=_always
    ),
    StageDefinition("train", ("model", "train", "seed"), ("prepare",), needs_ray=trains_on_ray),
    StageDefinition("evaluate", ("model",), ("prepare", "train")),
    StageDefinition(
        "compress",
        ("compress", "export", "model"),
        ("prepare", "train"),
        skip_without="compress",
        needs_ray=_compresses_on_ray,
    ),
    StageDefinition("export", ("export", "model"), ("prepare", "train", "evaluate", "compress"), outputs=("bundle",)),
    StageDefinition("deploy", ("serve",), ("export",), skip_without="serve", always=True, needs_ray=_always),
    StageDefinition("predict", ("serve",), ("prepare", "export", "deploy"), skip_without="serve", always=True),
)
"""The main job, in order. The values that a search found are part of the `train` section by the time train runs."""


def interrupted(run: RunFolder) -> InterruptedRunError:
    """What a run that was told to stop ends with, whichever process is the one to say so."""
    return InterruptedRunError(
        f"Run '{run.name}' was stopped",
        found="Ctrl-C or SIGTERM",
        rule="everything finished is kept",
        remedy="Run the same command again to go on from here.",
    )
