"""Prepared data of divided rows, in two passes over them: fit on the training rows, then write all rows.

    items -> statistics of each, merged -> transforms -> each item's rows into their places in the shards -> balance

Invariant: what is fitted has seen training rows alone, and every row of theirs where its statistics are exact (counts,
words, mean, deviation, minimum, maximum, sums of targets); what needs all values at once is fitted on `SAMPLE_ROWS` of
them where they are more than one batch. An executor changes no byte of the result.

Covered: sources in memory, tables past it. Not covered: reading and dividing rows (row_plan.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.atomic import write_json
from cluster.bundle.files import TRANSFORMS
from cluster.bundle.transforms import ArrayTransforms, Transforms
from cluster.spec.data import SPLITS
from trainers.data.executors import ONE_PROCESS, Executor
from trainers.data.fit.arrays import fit_arrays
from trainers.data.fit.table import FEATURES, Fitted, cross_fitted, fit_transforms
from trainers.data.fit.target import target_facts
from trainers.data.fit.training_statistics import Statistics, TrainingRows, sum_targets, take_rows
from trainers.data.past_memory import Needs, asked_steps
from trainers.data.read.not_finite import check_tensors
from trainers.data.row_plan import Item, Reader, RowPlan
from trainers.data.shards import Split, fill_shards, make_shards, open_split, write_description

Prepared = tuple[Transforms | ArrayTransforms, dict[str, int], dict[str, Any]]
"""The transforms, the rows of each split, and what fitting learned."""


def fit(plan: RowPlan, executor: Executor) -> tuple[Fitted, dict[str, Any]]:
    """Transforms of the training rows, and facts. Raises DataError."""
    rules = plan.reader.rules
    if rules is None:
        assert plan.raw is not None
        of_arrays, facts = fit_arrays(plan.raw, plan.rows["train"])
        return Fitted(of_arrays), facts
    training = _merged(executor.map(scan_training, plan.items, plan.reader))
    facts = {}
    transforms = fit_transforms(rules, training)
    if plan.spec.select is not None and transforms.outputs[0].name == FEATURES:
        transforms, facts["selection"] = _selected(plan, executor, transforms, training)
    facts["num_features"] = {output.name: len(output.features) for output in transforms.outputs}
    facts["columns"] = dict(rules.roles)
    if not training.whole:
        facts["sampled_rows"] = len(training.sample.numbers)
    return cross_fitted(plan.spec, transforms, training), facts


def scan_training(item: Item, reader: Reader) -> Statistics:
    """The statistics of an item's training rows. Raises DataError."""
    assert reader.rules is not None
    spec, roles = reader.rules.spec, reader.rules.roles
    whole = Statistics()
    for batch in reader.batches(item):
        rows = TrainingRows(batch.values, batch.targets, batch.numbers).take(np.flatnonzero(batch.splits == 0))
        found = Statistics.of(rows) if item.in_memory else Statistics.counted(rows, roles)
        if spec.encode.category == "target":
            found.sums = {name: sum_targets(rows.values[name], rows, len(reader.target.classes), spec.split.seed)
                          for name, role in roles.items() if role == "category"}  # fmt: skip
        if item.in_memory:
            return found
        whole.merge(found)
    return whole


def _merged(parts: Iterable[Statistics]) -> Statistics:
    first, *others = parts
    for other in others:
        first.merge(other)
    return first


def _selected(
    plan: RowPlan, executor: Executor, transforms: Transforms, training: Statistics
) -> tuple[Transforms, dict[str, Any]]:
    """With the chosen features: scored on the sample, by variance on all training rows."""
    from trainers.data.fit.select import FeatureMoments, select_features

    assert plan.spec.select is not None
    fitted = cross_fitted(plan.spec, transforms, training)
    matrix = fitted.apply(training.sample.values, training.sample.numbers)[FEATURES]
    moments = None
    if not training.whole and asked_steps(plan.spec, Needs.FEATURES):
        parts = executor.map(scan_features, plan.items, plan.reader, fitted)
        moments = FeatureMoments.pooled([part for each in parts for part in each])
    output, *others = transforms.outputs
    chosen, facts = select_features(
        plan.spec.select, output, matrix, training.sample.targets, bool(plan.target.classes), moments
    )
    return transforms.model_copy(update={"outputs": (chosen, *others)}), facts


def scan_features(item: Item, reader: Reader, fitted: Fitted) -> list[Any]:
    """`FeatureMoments` of the encoded training rows of each batch. Raises DataError."""
    from trainers.data.fit.select import FeatureMoments

    found = []
    for batch in reader.batches(item):
        train = np.flatnonzero(batch.splits == 0)
        if len(train):
            tensors = fitted.apply(take_rows(batch.values, train), batch.numbers[train])
            found.append(FeatureMoments.of(tensors[FEATURES]))
    return found


def check_selection(plan: RowPlan, executor: Executor) -> None:
    """Raise DataError where `data.select.k` is more than there are features. Each number and category has one at least:
    only a larger k asks for a fit."""
    select, rules = plan.spec.select, plan.reader.rules
    if rules is None or select is None or select.k is None:
        return
    sure = [name for name, role in rules.roles.items() if role != "text" and name not in rules.lists]
    if select.k > len(sure):
        from trainers.data.fit.select import check_k

        outputs = fit_transforms(rules, _merged(executor.map(scan_training, plan.items, plan.reader))).outputs
        check_k(select, sum(len(output.features) for output in outputs if output.name == FEATURES))


def write(folder: Path, plan: RowPlan, executor: Executor) -> Prepared:
    """Fit, then write every item's rows to their places in the shards, which are made first; the list last. Raises
    DataError."""
    fitted, facts = fit(plan, executor)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TRANSFORMS, fitted.transforms.to_json())
    inputs, rows = fitted.transforms.signature(), plan.num_rows
    for name, count in rows.items():
        make_shards(folder / name, count, inputs, np.int64 if plan.target.classes else np.float32)
    starts = np.cumsum([np.zeros_like(plan.counts[0]), *plan.counts], axis=0).tolist()
    for _ in executor.map(write_item, list(zip(plan.items, starts, strict=False)), plan.reader, fitted, str(folder)):
        pass
    if plan.spec.balance is not None:
        from trainers.data.fit.balance import balance_training, check_balance

        check_balance(plan.spec, plan.roles, plan.class_counts[0], plan.target.classes)
        train = open_split(folder / "train", inputs)
        rows["train"], balanced = balance_training(
            plan.spec.balance, folder / "train", train, plan.target.classes, _maker(plan, fitted)
        )
        facts |= balanced
    if not plan.target.classes:
        opened = {name: open_split(folder / name, inputs) for name in rows}
        facts |= target_facts(plan.spec.target_transform, opened)
    write_description(folder, rows, task=plan.target.task, classes=plan.target.classes, inputs=inputs, facts=facts)
    return fitted.transforms, rows, facts


def write_item(item: tuple[Item, list[int]], reader: Reader, fitted: Fitted, folder: str) -> int:
    """Write an item's rows, of each split from its row of the shards on. Returns how many there were."""
    starts, written = list(item[1]), 0
    for batch in reader.batches(item[0]):
        for index in np.unique(batch.splits[batch.splits >= 0]):
            rows = np.flatnonzero(batch.splits == index)
            tensors = fitted.apply(take_rows(batch.values, rows), batch.numbers[rows] if index == 0 else None)
            check_tensors(tensors, fitted.features, batch.numbers[rows])
            fill_shards(Path(folder) / SPLITS[index], starts[index], tensors, batch.targets[rows])
            starts[index] += len(rows)
            written += len(rows)
    return written


def count_training_rows(plan: RowPlan) -> int:
    """Rows that the training split will have once it is balanced: the batch plan counts updates with it. Raises
    DataError."""
    rows, spec = plan.num_rows["train"], plan.spec
    if spec.balance is None:
        return rows
    from trainers.data.fit.balance import balanced_rows, check_balance

    check_balance(spec, plan.roles, plan.class_counts[0], plan.target.classes)
    count = balanced_rows(spec.balance, plan.class_counts[0])
    if count is None:  # only doing it can tell
        fitted, _ = fit(plan, ONE_PROCESS)
        train, batch = plan.rows["train"], plan.batch
        tensors = fitted.apply(take_rows(batch.values, train), batch.numbers[train])
        count = len(_maker(plan, fitted)(Split(tensors, batch.targets[train])))
    return count


def _maker(plan: RowPlan, fitted: Fitted) -> Any:
    """The training split -> it and rows that nobody has seen."""

    def make_rows(train: Split) -> Split:
        from trainers.data.fit.balance import synthetic_rows

        assert plan.spec.balance is not None
        assert isinstance(fitted.transforms, Transforms)
        values = take_rows(plan.batch.values, plan.rows["train"])
        return synthetic_rows(plan.spec.balance, fitted.transforms, train, values, plan.target.classes)

    return make_rows
