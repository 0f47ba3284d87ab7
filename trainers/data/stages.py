"""The check and prepare stages: read this first of the data room.

    check:    source -> rules, target, split of each row -> DataFacts -> every `auto` decided
    prepare:  the same rules and split (handoff.py) -> fit on the training rows alone -> shards and transforms.json

A table in memory is one batch (row_plan.py); tables past memory go the same way in passes over their files (passes.py).

Invariant: whatever is fitted has seen the training split and nothing else, because the fit functions are handed
only its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from cluster.atomic import write_json
from cluster.bundle.files import TRANSFORMS
from cluster.bundle.signature import TensorSpec
from cluster.bundle.transforms import ArrayTransforms, Transforms
from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.data import SPLITS, DataSpec, FileSource, PythonSource
from cluster.spec.resolve import DataFacts, Reason, resolve
from cluster.store.stage_facts import FOUND_REASONS, CheckFacts, PrepareFacts
from cluster.telemetry.events import Message
from trainers.data.executors import THREADS, Executor
from trainers.data.fit.arrays import fit_arrays
from trainers.data.fit.target import target_facts
from trainers.data.handoff import Checked, Handoff, load_handoff, save_handoff
from trainers.data.passes import FilePlan, choose_way, plan_files, write
from trainers.data.read.delimited import settle_spec
from trainers.data.read.raw import TableRules
from trainers.data.read.sources import read_source
from trainers.data.row_plan import RowPlan, Target, plan_rows
from trainers.data.shard_store import publish_shards
from trainers.data.shards import TARGET_FACTS, write_prepared
from trainers.data.splits import split_rows


def check_data(context: StageContext) -> StageResult:
    """The check stage: facts about the data, and a run without `auto`."""
    context, reasons = _settled(context)
    spec = context.spec
    _wait_for_ray(context, spec.data)
    way = choose_way(spec.data, _memory_bytes(context))
    if not way.fits:
        context.events.emit(Message(stage=context.stage, text=f"the data is prepared {way.reason}"))
    notes = Notes(context)
    found: Found | Handoff | None = load_handoff(context.run.path, spec.data, way.name)
    if isinstance(found, Handoff):
        notes.say(found.checked.notes)
    else:
        found = (_check_past_memory if way.past_memory else _check_in_memory)(spec.data, notes)
    resolved = resolve(spec, name=context.run.name, host=context.host, data=found.checked.data)
    rows = found.num_rows_train if isinstance(found, Handoff) else found.training_rows(resolved.spec.data)
    data = found.checked.data.model_copy(update={"num_rows_train": rows})
    resolved = resolved.with_data(data)
    resolved = resolved.model_copy(update={"reasons": (*reasons, *resolved.reasons)})
    if isinstance(found, Found) and found.rules is not None and isinstance(spec.data.source, FileSource):
        left = Handoff(found.checked, rows, found.rules, found.target, found.assigned, found.piece_rows)
        save_handoff(context.run.path, spec.data, resolved.spec.data, way.name, left)
    checked = found.checked
    return StageResult(
        facts=CheckFacts(data=data, splits=checked.splits, class_rows=checked.class_rows),
        headline=checked.headline,
        resolved=resolved,
        details={"way": way.reason},
    )


@dataclass(frozen=True)
class Notes:
    """What the check stage says while it reads, kept for its next run."""

    context: StageContext
    said: list[str] = field(default_factory=list)

    def say(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.context.events.emit(Message(stage=self.context.stage, text=note))
            self.said.append(note)


@dataclass(frozen=True)
class Found:
    """What reading a source found."""

    checked: Checked
    rules: TableRules | None
    target: Target
    assigned: np.ndarray | None
    training_rows: Callable[[DataSpec], int]
    """Rows of the training split after cleaning and balancing, by the section without `auto`."""
    piece_rows: tuple[int, ...] = ()


def _check_in_memory(spec: DataSpec, notes: Notes) -> Found:
    def inspect(table: Any, fixed: np.ndarray | None) -> None:
        from trainers.data.quality.fail_on import check_quality

        notes.say(finding.sentence for finding in check_quality(spec, table, fixed).findings)

    plan = plan_rows(spec, inspect if spec.quality.fail_on else None)
    raw, classes = plan.raw, plan.target.classes
    if spec.quality.fail_on and raw.table is None:
        from trainers.data.quality.fail_on import refuse_arrays

        refuse_arrays(spec.source.kind)
    notes.say(raw.notes)
    counts = np.bincount(plan.targets, minlength=len(classes)).tolist() if classes else []
    data = DataFacts(
        task=plan.target.task, task_reason=plan.target.reason, layout=raw.layout, num_rows=len(raw),
        num_rows_train=len(plan.rows["train"]), num_classes=len(classes), item_shape=raw.item_shape,
        source_digest=raw.digest,
    )  # fmt: skip
    splits = {name: len(rows) for name, rows in plan.rows.items()}
    class_rows = dict(zip(classes, counts, strict=True))
    checked = Checked(data, splits, class_rows, _describe(plan), tuple(notes.said))
    return Found(checked, raw.rules, plan.target, plan.assigned, partial(count_training_rows, plan=plan))


def _check_past_memory(spec: DataSpec, notes: Notes) -> Found:
    """In passes over the files, by threads: Ray may still be starting."""
    if spec.quality.fail_on:
        from trainers.data.quality.fail_on import check_quality_files

        notes.say(finding.sentence for finding in check_quality_files(spec).findings)
    plan = plan_files(spec, THREADS)
    notes.say(plan.rules.notes)
    rows, target = plan.rows, plan.target
    data = DataFacts(
        task=target.task, task_reason=target.reason, layout="table", num_rows=sum(rows.values()),
        num_rows_train=rows["train"], num_classes=len(target.classes), source_digest=plan.digest,
    )  # fmt: skip
    classes = plan.statistics.classes
    class_rows = {label: sum(classes[split, index] for split in range(-1, len(SPLITS)))
                  for index, label in enumerate(target.classes)}  # fmt: skip
    headline = f"{data.num_rows:,} rows (table, past memory), {rows['train']:,} for training"
    checked = Checked(data, rows, class_rows, headline, tuple(notes.said))
    return Found(checked, plan.rules, target, plan.assigned, partial(_training_rows, plan=plan), plan.piece_rows)


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


def _memory_bytes(context: StageContext) -> int:
    """Of one node: the driver runs on one."""
    return context.host.memory_bytes // max(context.host.nodes, 1)


Prepared = tuple[dict[str, int], tuple[TensorSpec, ...], dict[str, Any]]
"""Rows of each split, the model's inputs, what fitting learned."""


def _prepare_past_memory(context: StageContext, spec: DataSpec, handoff: Handoff | None) -> Prepared:
    """`prepare_data` in passes over the files, on Ray Data where the run's Ray session stands."""
    executor = standing_executor(context)
    plan = plan_files(spec, executor, handoff)
    transforms, rows, facts = write(context.folder, plan, executor)
    write_json(context.folder / TRANSFORMS, transforms.to_json())
    return rows, transforms.signature(), facts


def standing_executor(context: StageContext) -> Executor:
    """Ray Data on the run's Ray session, which it waits for; threads outside of a run."""
    if context.ensure_ray():
        from trainers.data.ray_data import RAY_DATA

        return RAY_DATA
    return THREADS


def _wait_for_ray(context: StageContext, spec: DataSpec) -> None:
    """A function that makes a Ray Dataset would start a Ray of its own where none stands."""
    if isinstance(spec.source, PythonSource) and spec.source.needs_ray:
        context.ensure_ray()


def _training_rows(spec: DataSpec, plan: FilePlan) -> int:
    """`count_training_rows` of a table past memory, where only its classes' rows count."""
    rows, classes = plan.rows["train"], plan.target.classes
    if spec.balance is None:
        return rows
    from trainers.data.fit.balance import count_balanced

    counts = np.array([plan.statistics.classes[0, index] for index in range(len(classes))])
    return count_balanced(spec, plan.rules.roles, counts, classes) or rows


def count_training_rows(spec: DataSpec, plan: RowPlan) -> int:
    """Rows that the training split will have after cleaning and balancing: the batch plan counts updates with it."""
    from trainers.data.fit.table import prepare_table, training_rows

    rows = training_rows(spec, plan.raw, plan.rows["train"], plan.targets)
    if spec.balance is None:
        return len(rows)
    from trainers.data.fit.balance import count_balanced

    classes = plan.target.classes
    counts = np.bincount(plan.targets[rows], minlength=len(classes)) if classes else np.zeros(1, np.int64)
    count = count_balanced(spec, plan.raw.table.roles if plan.raw.table else {}, counts, classes)
    if count is None:
        count = len(prepare_table(spec, plan.raw, plan.rows, plan.targets, classes).splits["train"])
    return count


def prepare_data(context: StageContext) -> StageResult:
    """The prepare stage: split, fit on the training rows, write shards and transforms.json."""
    spec = context.run_resolved.spec.data
    _wait_for_ray(context, spec)
    way = choose_way(spec, _memory_bytes(context))
    handoff = load_handoff(context.run.path, spec, way.name)
    prepare = _prepare_past_memory if way.past_memory else _prepare_in_memory
    counts, inputs, learned = prepare(context, spec, handoff)
    found = _say_target(context, learned)
    more: dict[str, Any] = {"found": {path: kind for path, (kind, _) in found.items()}} if found else {}
    if spec.shards_url is not None:
        more["shards"] = {"store": spec.shards_url, "digest": publish_shards(context.folder, spec.shards_url)}
    shape = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in inputs)
    return StageResult(
        facts=PrepareFacts(splits=counts, inputs=inputs, **learned, **more),
        headline=", ".join(f"{rows} {name}" for name, rows in counts.items()) + f"; {shape}",
        details={FOUND_REASONS: {path: why for path, (_, why) in found.items()}} if found else {},
    )


def _say_target(context: StageContext, learned: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Emit how a quantity is learned; path -> (value, reason) where the spec has `auto`."""
    target = learned.get(TARGET_FACTS)
    if target is None:
        return {}
    text = f"the target is learned with transform '{target['kind']}': {target['reason']}"
    context.events.emit(Message(stage=context.stage, text=text))
    if context.run_resolved.spec.data.target_transform != "auto":
        return {}
    return {"data.target_transform": (target["kind"], target["reason"])}


def _prepare_in_memory(context: StageContext, spec: DataSpec, handoff: Handoff | None) -> Prepared:
    plan = _handed_rows(spec, handoff) or plan_rows(spec)
    if plan.raw.table is not None:
        from trainers.data.fit.table import prepare_table

        prepared = prepare_table(spec, plan.raw, plan.rows, plan.targets, plan.target.classes)
        inputs, splits, facts = prepared.inputs, prepared.splits, prepared.facts
        transforms: Transforms | ArrayTransforms = prepared.transforms
    else:
        transforms, splits, facts = fit_arrays(spec, plan.raw, plan.rows, plan.targets)
        inputs = transforms.signature()
    write_json(context.folder / TRANSFORMS, transforms.to_json())
    if plan.target.task == "regression":
        facts = {**facts, **target_facts(spec.target_transform, splits)}
    write_prepared(
        context.folder, splits, task=plan.target.task, classes=plan.target.classes, inputs=inputs, facts=facts
    )
    return {name: len(split) for name, split in splits.items()}, inputs, facts


def _handed_rows(spec: DataSpec, handoff: Handoff | None) -> RowPlan | None:
    """The rows as check has read and divided them; None where there is no handoff, or the files have changed since."""
    if handoff is None or handoff.assigned is None:
        return None
    raw = read_source(spec, rules=handoff.rules_of(spec))
    if raw.words is None or raw.digest != handoff.checked.data.source_digest:
        return None
    targets = handoff.target.read(raw.words)
    return RowPlan(raw, handoff.target, targets, handoff.assigned, split_rows(handoff.assigned))


def _describe(plan: RowPlan) -> str:
    what = f"{len(plan.target.classes)} classes" if plan.target.task == "classification" else "a quantity"
    shape = f" of {list(plan.raw.item_shape)}" if plan.raw.item_shape else ""
    return f"{len(plan.raw):,} rows ({plan.raw.layout}{shape}), target {what}, {len(plan.rows['train']):,} for training"
