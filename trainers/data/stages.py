"""The check and prepare stages: read this first of the data room.

    check:    source -> rules, target, split of each row -> DataFacts -> every `auto` decided
    prepare:  the same rules and split (handoff.py) -> fit on the training rows alone -> shards and transforms.json

One plan of rows (row_plan.py) and one way through them (prepare.py), on one process, threads or Ray Data: a source in
memory is one batch, of a table past memory (past_memory.py) each piece of its files is read by itself.

Invariant: whatever is fitted has seen the training split and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.data import DataSpec, FileSource, PythonSource
from cluster.spec.resolve import DataFacts, Reason, resolve
from cluster.store.stage_facts import FOUND_REASONS, CheckFacts, PrepareFacts
from cluster.telemetry.events import Message
from trainers.data.executors import ONE_PROCESS, THREADS, Executor
from trainers.data.handoff import Checked, Handoff, load_handoff, save_handoff
from trainers.data.past_memory import Way, choose_way
from trainers.data.prepare import check_selection, count_training_rows, write
from trainers.data.read.delimited import settle_spec
from trainers.data.row_plan import RowPlan, plan_files, plan_rows
from trainers.data.shard_store import publish_shards
from trainers.data.shards import TARGET_FACTS


def check_data(context: StageContext) -> StageResult:
    """The check stage: facts about the data, and a run without `auto`."""
    context, reasons = _settled(context)
    spec = context.spec
    _wait_for_ray(context, spec.data)
    way = choose_way(spec.data, _memory_bytes(context))
    if not way.fits:
        context.events.emit(Message(stage=context.stage, text=f"the data is prepared {way.reason}"))
    notes = Notes(context)
    handoff = load_handoff(context.run.path, spec.data, way.name)
    if handoff is not None:
        notes.say(handoff.checked.notes)
        checked = handoff.checked
    else:
        plan = _plan_checked(spec.data, way, notes)
        checked = _checked(plan, notes)
    resolved = resolve(spec, name=context.run.name, host=context.host, data=checked.data)
    if handoff is None:
        settled = plan.under(resolved.spec.data)
        check_selection(settled, THREADS if way.past_memory else ONE_PROCESS)
        rows = count_training_rows(settled)
    else:
        rows = handoff.num_rows_train
    data = checked.data.model_copy(update={"num_rows_train": rows})
    resolved = resolved.with_data(data)
    resolved = resolved.model_copy(update={"reasons": (*reasons, *resolved.reasons)})
    if handoff is None and isinstance(spec.data.source, FileSource):
        rules = plan.reader.rules
        assert rules is not None
        counts, class_counts = (tuple(map(tuple, each.tolist())) for each in (plan.counts, plan.class_counts))
        left = Handoff(checked, rows, rules, plan.target, plan.assigned, counts, class_counts)
        save_handoff(context.run.path, spec.data, resolved.spec.data, way.name, left)
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


def _plan_checked(spec: DataSpec, way: Way, notes: Notes) -> RowPlan:
    """The rows, divided, and what the quality rules of the spec find. Past memory by threads: Ray may still start."""
    if way.past_memory:
        if spec.quality.fail_on:
            from trainers.data.quality.fail_on import check_quality_files

            notes.say(finding.sentence for finding in check_quality_files(spec).findings)
        plan = plan_files(spec, THREADS)
    else:
        plan = plan_rows(spec, partial(_inspect, spec, notes) if spec.quality.fail_on else None)
        if spec.quality.fail_on and plan.reader.rules is None:
            from trainers.data.quality.fail_on import refuse_arrays

            refuse_arrays(spec.source.kind)
    notes.say(plan.notes)
    return plan


def _inspect(spec: DataSpec, notes: Notes, table: Any, fixed: np.ndarray | None) -> None:
    from trainers.data.quality.fail_on import check_quality

    notes.say(finding.sentence for finding in check_quality(spec, table, fixed).findings)


def _checked(plan: RowPlan, notes: Notes) -> Checked:
    target, rows = plan.target, plan.num_rows
    shape = plan.raw.item_shape if plan.raw else ()
    total = int(plan.counts.sum())
    layout = plan.raw.layout if plan.raw else "table"
    data = DataFacts(
        task=target.task, task_reason=target.reason, layout=layout, num_rows=total, num_rows_train=rows["train"],
        num_classes=len(target.classes), item_shape=shape, source_digest=plan.digest,
    )  # fmt: skip
    class_rows = dict(zip(target.classes, plan.class_counts.sum(axis=0).tolist(), strict=False))
    what = f"{len(target.classes)} classes" if target.classes else "a quantity"
    where = f" of {list(shape)}" if shape else "" if plan.raw else ", past memory"
    headline = f"{total:,} rows ({layout}{where}), target {what}, {rows['train']:,} for training"
    return Checked(data, rows, class_rows, headline, tuple(notes.said))


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


def prepare_data(context: StageContext) -> StageResult:
    """The prepare stage: split, fit on the training rows, write shards and transforms.json."""
    spec = context.run_resolved.spec.data
    _wait_for_ray(context, spec)
    way = choose_way(spec, _memory_bytes(context))
    handoff = load_handoff(context.run.path, spec, way.name)
    if way.past_memory:
        executor = standing_executor(context)
        plan = plan_files(spec, executor, handoff)
    else:
        executor, plan = ONE_PROCESS, plan_rows(spec, handoff=handoff)
    transforms, counts, learned = write(context.folder, plan, executor)
    inputs = transforms.signature()
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
