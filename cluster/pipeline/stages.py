"""The stages of a run, in order: the one table that names them.

A row has all that the driver needs to know of a stage: the function that does it, what of the spec and of earlier
stages its result depends on, whether it needs Ray, the model of its facts. Read it first: entry points lead into the
rooms.

Invariant: light. What is not needed to list stages is named as a string (`cluster.entrypoints.load`).

Covered: order, dependencies. Not covered: what a stage function gets and returns (stage.py), reuse (reuse.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.spec.resolve import HostFacts
    from cluster.spec.run import RunSpec


def _never(spec: RunSpec, host: HostFacts) -> bool:
    return False


def _always(spec: RunSpec, host: HostFacts) -> bool:
    return True


def trains_on_ray(spec: RunSpec, host: HostFacts) -> bool:
    """One worker without a GPU trains in a process of the host, where the run has that for itself."""
    return bool(host.gpus) or spec.train.workers not in (1, "auto")


def _training_workers(spec: RunSpec) -> int:
    """At least; an elastic run takes more where there is room."""
    from cluster.spec.train import WorkersSpec

    workers = spec.train.workers
    assert workers != "auto", "check has resolved it"
    return workers.min if isinstance(workers, WorkersSpec) else workers


def _compresses_on_ray(spec: RunSpec, host: HostFacts) -> bool:
    """Trials that run side by side are Ray tasks; networks are trained as the train stage trains."""
    from cluster.spec.compress import TRAINING

    if spec.compress is None:
        return False
    side_by_side = spec.compress.concurrency > 1 and len(spec.compress.recipes) > 1
    return side_by_side or (bool(TRAINING & set(spec.compress.recipes)) and trains_on_ray(spec, host))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A row of the table."""

    name: str
    entrypoint: str
    """`function(StageContext) -> StageResult`."""
    facts: str
    """The model of its facts (cluster/store/stage_facts.py), with what they change of the resolved run."""
    sections: tuple[str, ...]
    """Top-level keys of the resolved spec that change its result."""
    needs: tuple[str, ...] = ()
    """Stages whose output it reads."""
    skip_without: str | None = None
    """Section whose absence (null) skips this stage."""
    always: bool = False
    """Run it even when nothing changed: its result depends on the host, or ends with the run."""
    needs_ray: Callable[[RunSpec, HostFacts], bool] = _never
    """Whether the spec says that it needs Ray: then Ray starts while earlier stages work, and stands when it begins.
    Before the check stage, an `auto` says no. A stage that finds out later calls `context.ensure_ray`."""
    workers: Callable[[RunSpec], int] | None = None
    """How many workers of Ray it starts, all at once: on a cluster it waits for its turn (cluster/control/queue.py)."""
    early: str | None = None
    """`function(StageContext) -> Any`: starts what the stage will need, in a thread of the driver, while earlier stages
    work. The stage finds the result in `context.early` and ends it."""
    identity: str | None = None
    """`function(StageContext) -> str`: names what the stage works on, where that outlives a change of its inputs: its
    records then belong together. Without it the inputs' digest does."""
    outputs: tuple[str, ...] = ()
    """Folders of the run, besides its own, that it fills: hashed into its record."""


STAGES: tuple[Stage, ...] = (
    Stage(
        name="check",
        entrypoint="trainers.data.stages:check_data",
        facts="cluster.store.stage_facts:CheckFacts",
        sections=("data", "model", "train", "search", "compress", "export", "serve"),
        always=True,
    ),
    Stage(
        name="prepare",
        entrypoint="trainers.data.stages:prepare_data",
        facts="cluster.store.stage_facts:PrepareFacts",
        sections=("data", "seed"),
        needs=("check",),
    ),
    Stage(
        name="search",
        entrypoint="trainers.search.stage:run_search",
        facts="cluster.store.stage_facts:SearchFacts",
        sections=("search", "model", "train", "seed"),
        needs=("prepare",),
        skip_without="search",
        needs_ray=_always,
    ),
    Stage(
        name="train",  # its section holds the search's values by the time it runs
        entrypoint="trainers.launch.stage:run_training",
        facts="cluster.store.stage_facts:TrainFacts",
        sections=("model", "train", "seed"),
        needs=("prepare",),
        needs_ray=trains_on_ray,
        workers=_training_workers,
        early="trainers.launch.ready_workers:warm_workers",
        identity="trainers.launch.earlier:training_of",
    ),
    Stage(
        name="evaluate",
        entrypoint="trainers.evaluate.stage:run_evaluation",
        facts="cluster.store.stage_facts:EvaluateFacts",
        sections=("model",),
        needs=("prepare", "train"),
    ),
    Stage(
        name="compress",
        entrypoint="trainers.compress.stage:run_compression",
        facts="cluster.store.stage_facts:CompressFacts",
        sections=("compress", "export", "model"),
        needs=("prepare", "train"),
        skip_without="compress",
        needs_ray=_compresses_on_ray,
    ),
    Stage(
        name="export",
        entrypoint="trainers.export.stage:run_export",
        facts="cluster.store.stage_facts:ExportFacts",
        sections=("export", "model"),
        needs=("prepare", "train", "evaluate", "compress"),
        outputs=("bundle",),
    ),
    Stage(
        name="deploy",
        entrypoint="serve.deployments.stages:deploy",
        facts="cluster.store.stage_facts:DeployFacts",
        sections=("serve",),
        needs=("export",),
        skip_without="serve",
        always=True,
        needs_ray=_always,
        early="serve.deployments.stages:start_early",
    ),
    Stage(
        name="predict",
        entrypoint="serve.deployments.stages:predict",
        facts="cluster.store.stage_facts:PredictFacts",
        sections=("serve",),
        needs=("prepare", "export", "deploy"),
        skip_without="serve",
        always=True,
    ),
)
