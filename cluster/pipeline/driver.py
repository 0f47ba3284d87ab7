"""The driver: runs a run's stages in order, one record each, in a process of its own.

    for stage in stages:  digest -> reuse its record, or run it in a partial folder and rename that into place

Invariant: whatever ends the driver (an error, Ctrl-C, kill -9), every finished stage stays whole, and the same
command goes on at the first unfinished one, with the partial folder that belongs to the same inputs.

Covered: order, reuse, resume, the private or shared Ray session, state, report. Not covered: what stages do
(stages.py names them), how it looks on a terminal (cluster/telemetry/progress.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cluster import entrypoints
from cluster.atomic import new_folder, write_json, write_text
from cluster.errors import InterruptedRunError, MantaError, RunError, StageFailedError
from cluster.pipeline.early_start import EarlyStarts
from cluster.pipeline.ray_thread import RayThread
from cluster.pipeline.reuse import DIGEST_FILE, is_skipped, output_hashes, reusable, stage_digest, stages_until
from cluster.pipeline.stage import StageContext, StageResult, interrupted
from cluster.pipeline.stages import Stage
from cluster.pipeline.summary import summarize
from cluster.pipeline.views import make_views
from cluster.probe import host_facts, read_host, sum_facts
from cluster.runtime.preflight import check_shared_memory, check_this_host, check_working_folder
from cluster.spec.resolve import HostFacts, ResolvedRun
from cluster.spec.rules import load_checked
from cluster.spec.run import RunSpec
from cluster.store.fence import Fence
from cluster.store.run_folder import RECORD, RunFolder, StageRecord
from cluster.store.stage_facts import StageFacts
from cluster.telemetry.events import (
    Message,
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    StageFailed,
    StageFinished,
    StageStarted,
)

LOG = logging.getLogger(__name__)
BUNDLE = "bundle"  # the folder of the run whose stage makes the bundle (stages.py: `outputs`)


@dataclass(frozen=True)
class DriveOptions:
    """What the command line decides about a run besides its spec."""

    address: str | None = None
    until: str | None = None
    keep: bool = False
    """Go on living with the endpoint after the last stage, until SIGTERM."""
    store: str | None = None
    """Where the bundle goes as soon as it is finished."""
    priority: int = 0
    """On a cluster: of the runs that wait, the one with the largest goes first."""


@dataclass
class Driver:
    """One run in one process."""

    run: RunFolder
    options: DriveOptions
    fence: Fence
    spec: RunSpec
    host: HostFacts
    ray: RayThread
    early: EarlyStarts
    stages: tuple[Stage, ...]
    records: dict[str, StageRecord] = field(default_factory=dict)
    resolved: ResolvedRun | None = None
    unpublished: MantaError | None = None
    """Why the bundle is not in the store."""

    def drive(self) -> dict[str, Any]:
        """Run or reuse every stage; returns the summary. Raises MantaError."""
        self._start_ray(self._coming(self.stages, self.spec), self.spec)
        for index, stage in enumerate(self.stages):
            undecided = self.resolved is None
            self._one(stage)
            if undecided and self.resolved is not None:
                self._start_early(self.stages[index + 1 :])
            if BUNDLE in stage.outputs:
                self._publish()
        if self.unpublished is not None:
            raise self.unpublished
        return summarize(self.run, self.records, kept=self.options.keep, remote=not self.ray.private)

    def _publish(self) -> None:
        """Copy the bundle into the store before an endpoint is tried: a fault of either leaves the other alone."""
        if self.options.store is None:
            return
        from cluster.store.remote import publish_bundle  # loads fsspec

        try:
            location = publish_bundle(self.run.bundle, self.options.store, self.run.name).location
        except MantaError as error:
            self.unpublished = error
            self.run.sink().emit(Message(level="warning", text=f"{error.message} The run goes on."))
        else:
            self.run.sink().emit(Message(text=f"the bundle is at {location}"))

    def _start_early(self, later: tuple[Stage, ...]) -> None:
        """Begin with what later stages need, where they will run."""
        assert self.resolved is not None
        coming = self._coming(later, self.resolved.spec)
        self._start_ray(coming, self.resolved.spec)
        for stage in coming:
            if stage.early:
                context = replace(self._context(stage, self.run.path, ""), ensure_ray=self.ray.ready)
                self.early.begin(stage.name, partial(_call_named, stage.early, context))

    def _coming(self, stages: tuple[Stage, ...], spec: RunSpec) -> list[Stage]:
        """Those that will run: a finished stage is taken to be reused."""
        return [
            stage
            for stage in stages
            if not is_skipped(stage, spec) and (stage.always or not self.run.stage(stage.name).exists())
        ]

    def _start_ray(self, coming: list[Stage], spec: RunSpec) -> None:
        if self.ray.begun or not any(stage.needs_ray(spec, self.host) for stage in coming):
            return
        if self.ray.private:
            check_shared_memory()
        self.ray.start()

    def _one(self, stage: Stage) -> None:
        self.fence.check()
        check_working_folder()
        events = self.run.sink()
        current = self.resolved.spec if self.resolved else self.spec
        if is_skipped(stage, current):
            note = f"{stage.skip_without}: null"
            events.emit(StageFinished(stage=stage.name, status="skipped", duration_s=0.0, headline=note))
            return
        digest = stage_digest(stage, current, self.records)
        record, why = reusable(stage, self.run, digest)
        if why:
            events.emit(Message(stage=stage.name, text=f"{stage.name} runs again: {why}"))
        status: Literal["done", "reused", "skipped"] = "reused" if record else "done"
        if record is None:
            record = self._execute(stage, digest)
            status = record.status
        self.records[stage.name] = record
        model: type[StageFacts] = entrypoints.load(stage.facts)
        facts = model.of(self.records)
        if facts is not None and self.resolved is not None:
            self._resolve(facts.changes(self.resolved, record.details))
        events.emit(
            StageFinished(stage=stage.name, status=status, duration_s=record.duration_s, headline=record.headline)
        )

    def _execute(self, stage: Stage, digest: str) -> StageRecord:
        """Run a stage and write its record."""
        self.run.sink().emit(StageStarted(stage=stage.name, digest=self._identity(stage, digest)))
        if stage.needs_ray(self.resolved.spec if self.resolved else self.spec, self.host):
            self._wait_for_ray(stage.name)
        started, clock = time.time(), time.monotonic()
        target = self.run.stage(stage.name)
        _drop_foreign_partial(target, digest)
        with new_folder(target, keep_partial=True) as folder:
            write_text(folder / DIGEST_FILE, digest)
            with self._turn(stage):
                result = self._call(stage, folder, digest)
            self.fence.check()
            record = StageRecord(
                stage=stage.name,
                inputs_digest=digest,
                status=result.status,
                facts=result.facts.to_json(),
                details=result.details,
                headline=result.headline,
                files=output_hashes(stage, self.run, folder),
                started_unix_s=started,
                duration_s=time.monotonic() - clock,
            )
            write_json(folder / RECORD, record.model_dump(mode="json"))
        if result.resolved is not None:
            self._resolve(result.resolved)
        return record

    def _identity(self, stage: Stage, digest: str) -> str:
        """Whose records belong together: those of the same inputs, or what the stage says."""
        if stage.identity is None:
            return digest
        return str(entrypoints.load(stage.identity)(self._context(stage, self.run.stage(stage.name), digest)))

    def _call(self, stage: Stage, folder: Path, digest: str) -> StageResult:
        """Call the stage's function; an error that is not ours becomes StageFailedError with its traceback kept."""
        events = self.run.sink()
        context = replace(self._context(stage, folder, digest), early=self.early.take(stage.name))
        try:
            return entrypoints.load(stage.entrypoint)(context)
        except MantaError as error:
            events.emit(StageFailed(stage=stage.name, error=error.to_dict()))
            raise
        except Exception as error:
            failure = StageFailedError(
                f"Stage '{stage.name}' of run '{self.run.name}' failed",
                found=f"{type(error).__name__}: {error}",
                remedy=f"The traceback is in {self.run.log}; mend the cause and run the same command again, "
                "it goes on from here.",
            )
            events.emit(StageFailed(stage=stage.name, error=failure.to_dict()))
            raise failure from error

    def _wait_for_ray(self, stage: str) -> bool:
        """Blocks until Ray stands; says so where there is something to wait for."""
        if not self.ray.stands:
            self.run.sink().emit(Progress(stage=stage, done=0, text="waiting for Ray"))
        return self.ray.ready()

    def _turn(self, stage: Stage) -> AbstractContextManager[None]:
        """On a cluster that others use, a stage with workers waits until there is room for them and it is its turn."""
        if stage.workers is None or self.ray.private:
            return nullcontext()
        from cluster.control.queue import turn  # imports ray

        assert self.resolved is not None
        say = partial(self._context(stage, self.run.path, "").progress, 0, None, "")
        return turn(self.run.name, stage.workers(self.resolved.spec), say, priority=self.options.priority)

    def _context(self, stage: Stage, folder: Path, digest: str) -> StageContext:
        return StageContext(
            stage=stage.name,
            run=self.run,
            spec=self.spec,
            resolved=self.resolved,
            host=self.host,
            folder=folder,
            digest=digest,
            records=dict(self.records),
            events=self.run.sink(),
            ensure_ray=partial(self._wait_for_ray, stage.name),
            owns_host=self.ray.private,
            later=tuple(other.name for other in self.stages[self.stages.index(stage) + 1 :]),
        )

    def _resolve(self, resolved: ResolvedRun) -> None:
        if resolved is not self.resolved:
            self.resolved = resolved
            self.run.write_resolved(resolved)


def run_driver(run: RunFolder, options: DriveOptions, fence: Fence, *, wait: Callable[[], None]) -> int:
    """Drive a run to its end and return the exit code. `wait` blocks until a signal to stop (`--keep`)."""
    events = run.sink()
    started = time.monotonic()
    _write_state(run, "running", address=options.address)
    stages = stages_until(options.until)
    names = [stage.name for stage in stages]
    events.emit(
        RunStarted(run=run.name, stages=names, pid=os.getpid(), host=socket.gethostname(), address=options.address)
    )
    address = options.address or os.environ.get("RAY_ADDRESS") or None
    with RayThread(address, logs=run.path / "ray-logs") as ray, EarlyStarts() as early:
        try:
            spec = load_checked(run.path / "spec.yaml")
            host = _look_ahead(run, options, spec, ray, stages)
            summary = Driver(run, options, fence, spec, host, ray, early, stages).drive()
        except KeyboardInterrupt:
            return _fail(run, fence, interrupted(run))
        except MantaError as error:
            return _fail(run, fence, error)
        except Exception as error:  # noqa: BLE001 - a run that ends says so, whatever ended it
            return _fail(run, fence, _unexpected(run, error))
        finished = RunFinished(run=run.name, duration_s=time.monotonic() - started, summary=summary)
        make_views(run, "finished", finished)
        events.emit(finished)
        keeps = options.keep and "endpoint" in summary and ray.private
        _write_state(run, "serving" if keeps else "done", address=options.address, summary=summary)
        if keeps:
            wait()
    if keeps:
        _write_state(run, "done", address=options.address, summary=summary)
    return 0


def _call_named(entrypoint: str, context: StageContext) -> Any:
    return entrypoints.load(entrypoint)(context)


def _look_ahead(
    run: RunFolder, options: DriveOptions, spec: RunSpec, ray: RayThread, stages: tuple[Stage, ...]
) -> HostFacts:
    """Facts of the place where the run happens: all nodes of a cluster, or this host. Raises MantaError for what the
    run would miss there at its end."""
    serves = any(stage.skip_without == "serve" for stage in stages)
    check_this_host(spec, private=ray.private, serves=serves)
    if options.store is not None:
        from cluster.store.remote import check_store

        check_store(options.store, run.name)
    if ray.private:
        return host_facts()
    from cluster.runtime.nodes.preflight import check_nodes  # imports ray: only once a cluster is in use
    from cluster.runtime.nodes.tasks import on_every_node

    ray.ready()
    check_nodes(spec, run.path, serves=serves)
    return sum_facts(result.value for result in on_every_node(read_host) if result.value is not None)


def _unexpected(run: RunFolder, error: Exception) -> RunError:
    """An error outside of any stage that is not ours."""
    failure = RunError(
        f"Run '{run.name}' failed",
        found=f"{type(error).__name__}: {error}",
        remedy=f"The traceback is in {run.log}; finished stages are kept, and the same command goes on from here.",
    )
    failure.__cause__ = error
    return failure


def _fail(run: RunFolder, fence: Fence, error: MantaError) -> int:
    """Say in the run's folder how it ended, unless that is another driver's by now. Returns the exit code."""
    text = "".join(traceback.format_exception(error))
    if not fence.holds():
        LOG.error("%s", text)
        return error.exit_code
    if str(run.log) in error.message:  # the log is this process's stderr
        LOG.error("%s", text)
    run.sink().emit(RunFailed(run=run.name, error=error.to_dict(), traceback=text))
    state = "interrupted" if isinstance(error, InterruptedRunError) else "failed"
    _write_state(run, state, error=error.to_dict())
    make_views(run, state)
    return error.exit_code


def _write_state(run: RunFolder, state: str, **more: Any) -> None:
    write_json(
        run.state, {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), **more}
    )


def _drop_foreign_partial(target: Path, digest: str) -> None:
    """Remove a partial folder that belongs to other inputs."""
    partial = target.with_name(target.name + ".partial")
    marker = partial / DIGEST_FILE
    if partial.exists() and (not marker.exists() or marker.read_text(encoding="utf-8") != digest):
        shutil.rmtree(partial)
