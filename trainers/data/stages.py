"""The check and prepare stages: read this first of the data room.

    check:    source -> RawData -> targets, splits (counts only) -> DataFacts -> every `auto` decided
    prepare:  the same again -> fit on the training rows alone -> shards and transforms.json

Tables past memory go the same way in passes over their files (stream/prepare.py).

Invariant: whatever is fitted has seen the training split and nothing else, because the fit functions are handed
only its rows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cluster.atomic import write_json
from cluster.bundle.files import TRANSFORMS
from cluster.bundle.signature import TensorSpec
from cluster.bundle.transforms import ArrayTransforms, Transforms
from cluster.errors import DataError
from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.data import SPLITS, DataSpec, PythonSource
from cluster.spec.resolve import DataFacts, Reason, resolve
from cluster.telemetry.events import Message
from trainers.data import targets as target_rules
from trainers.data.fit.arrays import check_rules, fit_arrays
from trainers.data.fit.target import target_facts
from trainers.data.quality.report import QualityReport
from trainers.data.read.delimited import settle_spec
from trainers.data.read.raw import FREE, RawData
from trainers.data.read.sources import Inspect, read_source
from trainers.data.shard_store import publish_shards
from trainers.data.shards import TARGET_FACTS, write_prepared
from trainers.data.split_classes import check_split_classes
from trainers.data.splits import assign_splits, split_rows
from trainers.data.stream.prepare import Run, Way, choose_way, in_threads, scan, write


@dataclass(frozen=True)
class Plan:
    """What is known about the rows before anything is fitted."""

    raw: RawData
    task: Literal["classification", "regression"]
    classes: tuple[str, ...]
    targets: np.ndarray
    """(N,) int64 class indices, or (N,) float32."""
    rows: dict[str, np.ndarray]
    """Row indices of each split."""


def make_plan(spec: DataSpec, inspect: Inspect | None = None) -> Plan:
    """Read the source, check the target and split. Raises DataError."""
    raw = read_source(spec, inspect)
    if raw.table is None:
        check_rules(spec)
    classes: tuple[str, ...] = ()
    task = target_rules.infer_task(raw.targets, spec.task)
    if task == "regression":
        target_rules.check_regression(raw.targets, spec.target)
        codes = raw.targets.astype(np.float32)
    else:
        labels = target_rules.class_labels(raw.targets)
        classes = target_rules.find_classes(labels, spec.target, raw.missing_targets)
        codes = target_rules.encode(labels, classes)
    keys = raw.keys if raw.keys is not None else np.arange(len(raw), dtype=np.uint64)
    strata = codes if task == "classification" else None
    if spec.split.group is not None:
        strata = None  # a group has rows of several classes: its rows stay together instead
    by_rank = spec.split.time is None and spec.split.column is None and not spec.split.by_hash
    if strata is not None and spec.split.stratify and by_rank:
        _check_class_rows(spec, raw, codes, classes)
    rows = split_rows(assign_splits(spec.split, keys, strata, fixed=raw.fixed, times=raw.times))
    if "train" not in rows:
        raise DataError("Cannot split the data", found="no row is left for train", remedy="Lower the other shares.")
    if task == "classification":
        _check_split_classes(spec, codes, rows, classes, keys, mapped=raw.table is not None)
    return Plan(raw, task, classes, codes, rows)


def _check_split_classes(
    spec: DataSpec, codes: np.ndarray, rows: dict[str, np.ndarray], classes: tuple[str, ...], keys: np.ndarray, *,
    mapped: bool,
) -> None:  # fmt: skip
    counts = {name: np.bincount(codes[index], minlength=len(classes)) for name, index in rows.items()}
    check_split_classes(
        spec, counts, classes, different=lambda index: len(np.unique(keys[codes == index])), mapped=mapped
    )


def check_data(context: StageContext) -> StageResult:
    """The check stage: facts about the data, and a run without `auto`."""
    context, reasons = _settled(context)
    spec = context.spec
    _wait_for_ray(context, spec.data)
    way = choose_way(spec.data, _memory_bytes(context))
    if not way.fits:
        context.events.emit(Message(stage=context.stage, text=f"the data is prepared {way.reason}"))
    if way.past_memory:
        return _with_reasons(_check_past_memory(context, way), reasons)
    plan = _inspected_plan(context) if spec.data.quality.fail_on else make_plan(spec.data)
    for note in plan.raw.notes:
        context.events.emit(Message(stage=context.stage, text=note))
    facts = DataFacts(
        task=plan.task,
        task_reason=target_rules.task_reason(plan.raw.targets, plan.task),
        layout=plan.raw.layout,
        num_rows=len(plan.raw),
        num_rows_train=len(plan.rows["train"]),
        num_classes=len(plan.classes),
        item_shape=plan.raw.item_shape,
        source_digest=plan.raw.digest,
    )
    resolved = resolve(spec, name=context.run.name, host=context.host, data=facts)
    facts = facts.model_copy(update={"num_rows_train": count_training_rows(resolved.spec.data, plan)})
    resolved = resolved.with_data(facts)
    result = StageResult(
        facts={
            "data": facts.model_dump(mode="json"),
            "splits": {name: len(rows) for name, rows in plan.rows.items()},
            "class_rows": _class_rows(plan),
        },
        headline=_describe(plan),
        resolved=resolved,
        details={"way": way.reason},
    )
    return _with_reasons(result, reasons)


def _settled(context: StageContext) -> tuple[StageContext, list[Reason]]:
    """The context with a source without `auto`; what was found is said. Raises DataError."""
    data, found = settle_spec(context.spec.data)
    if not found:
        return context, []
    reasons = [Reason(path=f"data.source.{key}", value=getattr(data.source, key), reason=why)
               for key, why in found.items()]  # fmt: skip
    for reason in reasons:
        if reason.value == "missing":  # quotes that tell nothing are not worth a line
            continue
        context.events.emit(Message(stage=context.stage, text=f"{reason.path} is {reason.value!r}: {reason.reason}"))
    return replace(context, spec=context.spec.model_copy(update={"data": data})), reasons


def _with_reasons(result: StageResult, reasons: list[Reason]) -> StageResult:
    if result.resolved is None or not reasons:
        return result
    resolved = result.resolved.model_copy(update={"reasons": (*reasons, *result.resolved.reasons)})
    return replace(result, resolved=resolved)


def _memory_bytes(context: StageContext) -> int:
    """Of one node: the driver runs on one."""
    return context.host.memory_bytes // max(context.host.nodes, 1)


def _check_past_memory(context: StageContext, way: Way) -> StageResult:
    """`check_data` in passes over the files, by threads: Ray may still be starting."""
    spec = context.spec
    if spec.data.quality.fail_on:
        from trainers.data.quality.gate import check_quality_files

        _say_findings(context, check_quality_files(spec.data))
    scanned = scan(spec.data, in_threads)
    for note in scanned.notes:
        context.events.emit(Message(stage=context.stage, text=note))
    rows = scanned.rows
    facts = DataFacts(
        task=scanned.task, task_reason=scanned.task_reason, layout="table", num_rows=sum(rows.values()),
        num_rows_train=rows["train"], num_classes=len(scanned.classes), source_digest=scanned.digest,
    )  # fmt: skip
    resolved = resolve(spec, name=context.run.name, host=context.host, data=facts)
    classes = scanned.whole.classes
    class_rows = {label: sum(classes[split, index] for split in range(-1, len(SPLITS)))
                  for index, label in enumerate(scanned.classes)}  # fmt: skip
    return StageResult(
        facts={"data": facts.model_dump(mode="json"), "splits": rows, "class_rows": class_rows},
        headline=f"{facts.num_rows:,} rows (table, past memory), {rows['train']:,} for training",
        resolved=resolved,
        details={"way": way.reason},
    )


def _prepare_past_memory(context: StageContext, spec: DataSpec) -> StageResult:
    """`prepare_data` in passes over the files, on Ray Data where the run's Ray session stands."""
    context.ensure_ray()
    run: Run = in_threads
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        from trainers.data.stream.ray_data import map_in_order

        run = map_in_order
    scanned = scan(spec, run)
    transforms, facts = write(context.folder, scanned, run)
    write_json(context.folder / TRANSFORMS, transforms.to_json())
    return _prepared(scanned.rows, transforms.signature(), facts)


def _prepared(counts: dict[str, int], inputs: tuple[TensorSpec, ...], facts: dict[str, Any]) -> StageResult:
    shape = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in inputs)
    return StageResult(
        facts={"splits": counts, "inputs": [tensor.model_dump(mode="json") for tensor in inputs], **facts},
        headline=", ".join(f"{rows} {name}" for name, rows in counts.items()) + f"; {shape}",
    )


def _wait_for_ray(context: StageContext, spec: DataSpec) -> None:
    """A function that makes a Ray Dataset would start a Ray of its own where none stands."""
    if isinstance(spec.source, PythonSource) and spec.source.needs_ray:
        context.ensure_ray()


def _inspected_plan(context: StageContext) -> Plan:
    """`make_plan` behind the quality report. Raises DataError for findings that data.quality.fail_on names."""
    from trainers.data.quality.gate import check_quality, refuse_arrays

    spec = context.spec.data

    def inspect(table: Any, fixed: np.ndarray | None) -> None:
        _say_findings(context, check_quality(spec, table, fixed))

    plan = make_plan(spec, inspect)
    if plan.raw.table is None:
        refuse_arrays(spec.source.kind)
    return plan


def _say_findings(context: StageContext, report: QualityReport) -> None:
    for finding in report.findings:
        where = f" '{finding.column}'" if finding.column else ""
        context.events.emit(Message(stage=context.stage, text=f"{finding.rule}{where}: {finding.text}"))


def count_training_rows(spec: DataSpec, plan: Plan) -> int:
    """Rows that the training split will have after cleaning and balancing: the batch plan counts updates with it."""
    from trainers.data.fit.table import prepare_table, training_rows

    rows = training_rows(spec, plan.raw, plan.rows["train"], plan.targets)
    if spec.balance is None:
        return len(rows)
    from trainers.data.fit.balance import balanced_rows, check_balance

    counts = np.bincount(plan.targets[rows], minlength=len(plan.classes)) if plan.classes else np.zeros(1, np.int64)
    check_balance(spec, plan.raw.table.roles if plan.raw.table else {}, counts, plan.classes)
    count = balanced_rows(spec.balance, counts)
    if count is None:
        count = len(prepare_table(spec, plan.raw, plan.rows, plan.targets, plan.classes).splits["train"])
    return count


def prepare_data(context: StageContext) -> StageResult:
    """The prepare stage: split, fit on the training rows, write shards and transforms.json."""
    spec = context.run_resolved.spec.data
    _wait_for_ray(context, spec)
    past = choose_way(spec, _memory_bytes(context)).past_memory
    result = _prepare_past_memory(context, spec) if past else _prepare_in_memory(context, spec)
    result = _say_target(context, result)
    if spec.shards_url is None:
        return result
    digest = publish_shards(context.folder, spec.shards_url)
    return replace(result, facts={**result.facts, "shards": {"store": spec.shards_url, "digest": digest}})


def _say_target(context: StageContext, result: StageResult) -> StageResult:
    """Tell how a quantity is learned; where the spec says `auto`, what was found becomes part of the resolved run."""
    target = result.facts.get(TARGET_FACTS)
    if target is None:
        return result
    text = f"the target is learned with transform '{target['kind']}': {target['reason']}"
    context.events.emit(Message(stage=context.stage, text=text))
    if context.run_resolved.spec.data.target_transform != "auto":
        return result
    path = "data.target_transform"
    return replace(
        result,
        facts={**result.facts, "found": {path: target["kind"]}},
        details={**result.details, "found_reasons": {path: target["reason"]}},
        resolved=context.run_resolved.with_found({path: (target["kind"], target["reason"])}),
    )


def _prepare_in_memory(context: StageContext, spec: DataSpec) -> StageResult:
    plan = make_plan(spec)
    if plan.raw.table is not None:
        from trainers.data.fit.table import prepare_table

        prepared = prepare_table(spec, plan.raw, plan.rows, plan.targets, plan.classes)
        inputs, splits, facts = prepared.inputs, prepared.splits, prepared.facts
        transforms: Transforms | ArrayTransforms = prepared.transforms
    else:
        transforms, splits, facts = fit_arrays(spec, plan.raw, plan.rows, plan.targets)
        inputs = transforms.signature()
    write_json(context.folder / TRANSFORMS, transforms.to_json())
    if plan.task == "regression":
        facts = {**facts, **target_facts(spec.target_transform, splits)}
    write_prepared(context.folder, splits, task=plan.task, classes=plan.classes, inputs=inputs, facts=facts)
    return _prepared({name: len(split) for name, split in splits.items()}, inputs, facts)


def _check_class_rows(spec: DataSpec, raw: RawData, codes: np.ndarray, classes: tuple[str, ...]) -> None:
    """Rows that the source itself puts into a split need no share of the others."""
    free = codes if raw.fixed is None else codes[raw.fixed == FREE]
    others = (spec.split.validation, spec.split.calibration, spec.split.gate,
              spec.split.test if raw.fixed is None else 0)  # fmt: skip
    target_rules.check_class_rows(free, classes, 1 + sum(1 for share in others if share))


def _class_rows(plan: Plan) -> dict[str, int]:
    if plan.task == "regression":
        return {}
    counts = np.bincount(plan.targets, minlength=len(plan.classes))
    return {label: int(count) for label, count in zip(plan.classes, counts, strict=True)}


def _describe(plan: Plan) -> str:
    what = f"{len(plan.classes)} classes" if plan.task == "classification" else "a quantity"
    shape = f" of {list(plan.raw.item_shape)}" if plan.raw.item_shape else ""
    return f"{len(plan.raw):,} rows ({plan.raw.layout}{shape}), target {what}, {len(plan.rows['train']):,} for training"
