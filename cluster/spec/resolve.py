"""`resolve(spec, facts) -> ResolvedRun`: every `auto` becomes a value with a recorded reason.

Invariant: a pure function. The same spec and the same facts give the same run on every machine, and what is
written to `resolved.yaml` is what runs.

Covered: model family, task, workers, precision, global batch, micro-batch. Not covered: how they make updates
(batch_plan.py); where facts come from (cluster/probe for hosts, the check stage for data).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from cluster.errors import SpecError
from cluster.spec.base import StrictSpec
from cluster.spec.batch_plan import BatchPlan, share_of
from cluster.spec.load import override_spec
from cluster.spec.run import RunSpec
from cluster.spec.search import SearchSpec
from cluster.spec.train import BestSpec, metric_task_rule, mode_of, most_workers
from cluster.telemetry.view import counted

BATCH_SIZE_GLOBAL_AUTO = 64  # a common default; small enough for data sets of a thousand rows
BATCH_SIZE_PER_WORKER_CPU = 256  # a CPU core's caches hold this many small samples; larger gains nothing
WORKER_ROWS_MIN = 10_000  # CPUs: a small network does so many rows in a second; more workers take seconds to start
PIECEWISE_ROWS_MIN = 2_000  # 16 bins then hold 125 rows each; below, they overfit
BATCH_NORM_FAMILIES = ("cnn", "timm", "torchvision")
BATCH_NORM_ROWS_MIN = 16  # means of fewer rows are noisy
BATCH_NORM_GROUPS = 8  # of a global batch: as many workers can share one without changing what is normalized together
FOUND_BY_SEARCH = "found by the search"
UPDATES_PER_EPOCH_MIN = 10  # fewer updates an epoch make a schedule coarse


class GpuFacts(StrictSpec):
    """One GPU as the probe read it; null means "could not be read", never 0."""

    uuid: str
    name: str
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None


class HostFacts(StrictSpec):
    """What the cluster that runs this offers, summed over its nodes."""

    cpu_cores: int
    memory_bytes: int
    gpus: tuple[GpuFacts, ...] = ()
    nodes: int = 1


class DataFacts(StrictSpec):
    """What the check stage learned about the data without preparing it."""

    task: Literal["classification", "regression"]
    layout: Literal["image", "table", "array", "text"]
    num_rows: int
    num_rows_train: int
    num_classes: int = 0
    item_shape: tuple[int, ...] = ()
    """Shape of one row of the model's first input, where known before preparing."""
    source_digest: str
    """sha256 over the source's bytes: the data has changed when this has."""
    task_reason: str = ""
    """What of the target's values makes it this task."""


class Reason(StrictSpec):
    """Why an `auto` became what it is."""

    path: str
    value: Any
    reason: str


class ResolvedRun(StrictSpec):
    """A run without any `auto`. `spec` is complete; `reasons` say where values came from."""

    name: str
    spec: RunSpec
    host: HostFacts
    data: DataFacts
    batch: BatchPlan
    reasons: tuple[Reason, ...]

    def with_values(self, values: dict[str, Any], why: str = FOUND_BY_SEARCH) -> ResolvedRun:
        """The same run with dotted paths set (what a search or a probe found), batch plan derived anew."""
        derived = () if "train.batch_size_per_worker" in values else self._micro_batch_of(values)
        values = {**values, **{reason.path: reason.value for reason in derived}}
        spec = override_spec(self.spec, values)
        asked = (Reason(path=path, value=value, reason=why) for path, value in values.items())
        found = tuple({reason.path: reason for reason in (*asked, *derived)}.values())
        return self.model_copy(
            update={
                "spec": spec,
                "batch": BatchPlan.of(spec.train, self.data.num_rows_train),
                "reasons": (*(r for r in self.reasons if r.path not in values), *found),
            }
        )

    def with_data(self, data: DataFacts) -> ResolvedRun:
        """The same run on data of which more is known, batch plan derived anew."""
        return self.model_copy(update={"data": data, "batch": BatchPlan.of(self.spec.train, data.num_rows_train)})

    def with_found(self, found: Mapping[str, tuple[Any, str]]) -> ResolvedRun:
        """The same run with what training found out when it started: path -> (value, reason)."""
        run = self
        for path, (value, why) in found.items():
            run = run.with_values({path: value}, why=why)
        return run

    def _micro_batch_of(self, values: dict[str, Any]) -> tuple[Reason, ...]:
        """A micro-batch that was `auto` follows a new global batch, else accumulation would slow the larger ones."""
        path = "train.batch_size_per_worker"
        batch, workers = values.get("train.batch_size_global"), self.spec.train.workers
        if batch is None or workers == "auto" or all(reason.path != path for reason in self.reasons):
            return ()
        micro, why = _micro_batch(int(batch), most_workers(workers))
        return (Reason(path=path, value=micro, reason=why),)


def resolve(spec: RunSpec, *, name: str, host: HostFacts, data: DataFacts) -> ResolvedRun:
    """Decide every `auto` of `spec`. Raises SpecError for values that cannot hold together."""
    decisions = _Decisions()
    decisions.take("data.task", spec.data.task, (data.task, data.task_reason or "by its values"))
    decisions.take("data.encode.number", spec.data.encode.number, _number_encoding(data))
    _decide_metrics(spec, data.task, decisions)
    if data.task == "classification":  # of a quantity the prepare stage decides, on its rows
        _check_no_transform(spec)
        decisions.take("data.target_transform", spec.data.target_transform, ("none", "classes have no unit"))
    family = decisions.take("model.family", spec.model.family, _family(spec, data))
    if family in ("transformer", "transformers"):
        tokens = (spec.data.encode.vocabulary, "data.encode.vocabulary is its upper bound")
        decisions.take("model.vocabulary", getattr(spec.model, "vocabulary", "auto"), tokens)
    _decide_train(spec, host, data, decisions, family)
    if spec.compress is not None:
        metric = "accuracy" if data.task == "classification" else "r2"
        decisions.take("compress.budget.metric", spec.compress.budget.metric, (metric, f"the task is {data.task}"))
    if spec.search is not None:
        epochs = (spec.train.epochs, "a trial may train as long as train.epochs")
        decisions.take("search.epochs", spec.search.epochs, epochs)
        decisions.take("search.concurrency", spec.search.concurrency, _concurrency(host, spec.search.trials))
    complete = override_spec(spec, decisions.values) if decisions.values else spec
    return ResolvedRun(
        name=name,
        spec=complete,
        host=host,
        data=data,
        batch=BatchPlan.of(complete.train, data.num_rows_train),
        reasons=tuple(decisions.reasons),
    )


class _Decisions:
    """Values found for `auto`, each with its reason."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.reasons: list[Reason] = []

    def take(self, path: str, current: Any, found: tuple[Any, str]) -> Any:
        """The value to use: `current`, or where that is `auto` what was found, which is then recorded."""
        if current != "auto":
            return current
        value, reason = found
        self.values[path] = value
        self.reasons.append(Reason(path=path, value=value, reason=reason))
        return value


def _decide_metrics(spec: RunSpec, task: str, decisions: _Decisions) -> None:
    """What judges epochs and trials: a metric of the task, whose direction follows from its name."""
    judges: dict[str, BestSpec | SearchSpec] = {"train.best": spec.train.best}
    if spec.search is not None:
        judges["search"] = spec.search
    for path, judge in judges.items():
        if rule := metric_task_rule(judge.metric, task):
            raise SpecError(
                "Cannot judge epochs", found=f"{path}.metric is {judge.metric}", rule=rule, remedy="Name one of these."
            )
        mode = mode_of(judge.metric)
        less = "less" if mode == "min" else "more"
        decisions.take(f"{path}.mode", judge.mode, (mode, f"{less} of {judge.metric} is better"))


def _check_no_transform(spec: RunSpec) -> None:
    if spec.data.target_transform not in ("auto", "none"):
        raise SpecError(
            "Cannot transform the target",
            found=f"data.target_transform is {spec.data.target_transform!r} and the task is classification",
            rule="only a quantity has a unit to be learned in",
            remedy="Leave it out, or set data.task: regression.",
        )


def _decide_train(spec: RunSpec, host: HostFacts, data: DataFacts, decisions: _Decisions, family: str) -> None:
    train = spec.train
    workers = decisions.take("train.workers", train.workers, _workers(host, data))
    decisions.take("train.precision", train.precision, _precision(host))
    batch = decisions.take("train.batch_size_global", train.batch_size_global, _batch_size_global(data))
    micro = _micro_batch(batch, most_workers(workers))
    micro_rows = decisions.take("train.batch_size_per_worker", train.batch_size_per_worker, micro)
    if family in BATCH_NORM_FAMILIES:
        rows = _batch_norm_rows(host, batch, most_workers(workers), micro_rows)
        decisions.take("train.batch_norm_rows", train.batch_norm_rows, rows)
    elif train.batch_norm_rows == "auto":
        decisions.values["train.batch_norm_rows"] = None  # nothing to tell where there is no batch norm


def _number_encoding(data: DataFacts) -> tuple[str, str]:
    if data.num_rows_train >= PIECEWISE_ROWS_MIN:
        return "piecewise_linear", f"{data.num_rows_train} training rows are enough to fill its bins"
    return "standard", f"{data.num_rows_train} training rows are fewer than {PIECEWISE_ROWS_MIN}"


def _family(spec: RunSpec, data: DataFacts) -> tuple[str, str]:
    if data.layout == "image":
        return "cnn", f"rows are images of shape {list(data.item_shape)}"
    if spec.data.encode.text == "token_ids":
        return "transformer", "data.encode.text is token_ids, which only an embedding can use"
    return "mlp", f"rows are a {data.layout}"


def _workers(host: HostFacts, data: DataFacts) -> tuple[int, str]:
    if host.gpus:
        return len(host.gpus), f"the cluster has {counted(len(host.gpus), 'GPU')}, one worker each"
    if data.num_rows_train < WORKER_ROWS_MIN:
        return 1, f"no GPU; {data.num_rows_train} training rows are trained before a second worker has started"
    workers = max(1, min(2, host.cpu_cores))
    return workers, f"no GPU; {counted(host.cpu_cores, 'CPU core')} for {counted(workers, 'worker')}"


def _concurrency(host: HostFacts, trials: int) -> tuple[int, str]:
    if host.gpus:
        return min(trials, len(host.gpus)), f"one trial a GPU, {len(host.gpus)} GPUs"
    return max(1, min(trials, host.cpu_cores)), f"one trial a core, {host.cpu_cores} cores: more would wait"


def _precision(host: HostFacts) -> tuple[str, str]:
    if not host.gpus:
        return "fp32", "no GPU: a CPU gains nothing from AMP here"
    capability = host.gpus[0].compute_capability
    if capability is None:
        return "fp32", "the GPU's compute capability could not be read"
    if capability >= (8, 0):
        return "bf16", f"compute capability {capability[0]}.{capability[1]} has bf16"
    return "fp16", f"compute capability {capability[0]}.{capability[1]} has fp16 but no bf16"


def _micro_batch(batch: int, workers: int) -> tuple[int, str]:
    share = share_of(batch, workers)
    return (
        min(share, BATCH_SIZE_PER_WORKER_CPU),
        f"a worker's share of {batch} samples is {share}, and a micro-batch is at most {BATCH_SIZE_PER_WORKER_CPU}",
    )


def _batch_norm_rows(host: HostFacts, batch: int, workers: int, micro: int) -> tuple[int | None, str]:
    if host.gpus:
        return None, (
            "rows are normalized by the micro-batch, so results depend on its size; a number makes them independent of "
            "workers and micro-batches, and costs a GPU time"
        )
    wanted = max(BATCH_NORM_ROWS_MIN, batch // BATCH_NORM_GROUPS)
    rows = max(2, min(wanted, batch // workers, micro))
    if rows < wanted:
        least = "a worker's share" if batch // workers <= micro else "the micro-batch"
        return rows, f"{least} has no more rows; with a smaller one results change"
    same = f"with up to {batch // rows} workers and micro-batches of {rows} rows or more results are the same"
    return rows, f"{same}, but for dropout's draws"


def _batch_size_global(data: DataFacts) -> tuple[int, str]:
    most = max(8, data.num_rows_train // UPDATES_PER_EPOCH_MIN)
    batch = min(BATCH_SIZE_GLOBAL_AUTO, 1 << (most.bit_length() - 1))
    return (
        batch,
        f"{data.num_rows_train} training rows leave at least {UPDATES_PER_EPOCH_MIN} updates an epoch",
    )
