"""Fit a table's transforms on its training rows, and make the tensors of all splits with them.

Invariant: `fit_transforms` is handed the training rows alone; every split, the training one too, is then made by the
exported transforms themselves (cluster/bundle/transforms), which is the code that serving runs.

Covered: imputing, scaling, categories, dates, free text, selection, balance. Not covered: images (stages.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.bundle.signature import TensorSpec
from cluster.bundle.transforms import Block, Output, Texts, Transforms, Values
from cluster.errors import DataError
from cluster.spec.data import DataSpec
from trainers.data.fit_categories import category_block
from trainers.data.fit_numbers import number_blocks
from trainers.data.raw import RawData, Table
from trainers.data.shards import Split


@dataclass(frozen=True)
class PreparedTable:
    """Everything that the prepare stage writes for a table."""

    inputs: tuple[TensorSpec, ...]
    splits: dict[str, Split]
    transforms: Transforms
    facts: dict[str, Any]


def prepare_table(
    spec: DataSpec, raw: RawData, rows: Mapping[str, np.ndarray], targets: np.ndarray, classes: tuple[str, ...]
) -> PreparedTable:
    """Fit on `rows["train"]`, then transform every split. Raises DataError."""
    assert raw.table is not None
    train = training_rows(spec, raw, rows["train"], targets)
    fitted = fit_transforms(spec, raw.table, take_rows(raw.table.values, train), targets[train], classes)
    transforms, facts = fitted
    splits = {
        name: Split(
            transforms.apply(take_rows(raw.table.values, train if name == "train" else index)),
            targets[train if name == "train" else index],
        )
        for name, index in rows.items()
    }
    if spec.balance is not None:
        from trainers.data.balance import balance_training

        splits["train"], balanced = balance_training(spec, transforms, splits["train"], raw.table, take_rows(
            raw.table.values, train), classes)  # fmt: skip
        facts |= balanced
    return PreparedTable(transforms.signature(), splits, transforms, facts)


def training_rows(spec: DataSpec, raw: RawData, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The training rows, without repetitions where `clean.drop_duplicates` asks for it."""
    if not spec.clean.drop_duplicates or raw.table is None:
        return rows
    from trainers.data.hashing import mix, table_keys

    keys = table_keys(take_rows(raw.table.values, rows), len(rows))
    keys = mix(keys ^ mix(np.ascontiguousarray(targets[rows]).astype(np.float64).view(np.uint64)))
    _, first = np.unique(keys, return_index=True)
    return rows[np.sort(first)]


def fit_transforms(
    spec: DataSpec, table: Table, values: Mapping[str, Values], targets: np.ndarray, classes: tuple[str, ...]
) -> tuple[Transforms, dict[str, Any]]:
    """Transforms fitted on training `values` (rows of the training split alone), and what was chosen."""
    numbers = [name for name, role in table.roles.items() if role in ("number", "date")]
    blocks: list[Block] = number_blocks(spec, numbers, values) if numbers else []
    outputs: list[Output] = []
    for name, role in table.roles.items():
        column = values[name]
        if role == "category":
            assert isinstance(column, Texts)
            blocks.append(category_block(spec, name, column, targets, len(classes)))
        elif role == "text":
            from trainers.data.text import text_block

            assert isinstance(column, Texts)
            block = text_block(spec, name, column)
            if spec.encode.text == "token_ids":
                outputs.append(Output(name=f"{name}_ids", datatype="INT64", blocks=(block,)))
            else:
                blocks.append(block)
    facts: dict[str, Any] = {}
    if blocks:
        features = Output(name="features", blocks=tuple(blocks))
        if spec.select is not None:
            from trainers.data.select import select_features

            features, facts["selection"] = select_features(spec.select, features, values, targets, bool(classes))
        outputs.insert(0, features)
    transforms = Transforms(columns=table.columns, ignored=table.ignored, outputs=tuple(outputs))
    facts["num_features"] = {output.name: len(output.features) for output in outputs}
    facts["columns"] = dict(table.roles)
    return transforms, facts


def take_rows(values: Mapping[str, Values], rows: np.ndarray) -> dict[str, Values]:
    """The same columns with these rows."""
    return {name: take(column, rows) for name, column in values.items()}


def take(column: Values, rows: np.ndarray) -> Values:
    """Rows of one column. Words that no row uses any more are left out: they would leak other splits' categories."""
    if not isinstance(column, Texts):
        return column[rows]
    codes = column.codes[rows]
    used, places = np.unique(codes[codes >= 0], return_inverse=True)
    fresh = np.full(len(codes), -1, dtype=np.int32)
    fresh[codes >= 0] = places
    return Texts(fresh, tuple(column.words[code] for code in used))


def refuse(found: str, remedy: str) -> DataError:
    """The error of a step that cannot be fitted as asked."""
    return DataError("Cannot prepare the table", found=found, remedy=remedy)
