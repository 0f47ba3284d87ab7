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
from cluster.bundle.transforms.steps import TargetEncode
from cluster.spec.data import DataSpec
from trainers.data.fit.categories import category_block, fit_target_encoding
from trainers.data.fit.numbers import number_blocks
from trainers.data.fit.seen import example_row, seen_columns
from trainers.data.read.raw import RawData, Table
from trainers.data.shards import Split

FEATURES = "features"  # name of the tensor that most columns go to
FOLDS = 5  # of cross-fitted target encoding: each fold is encoded by the other 80 % of the rows


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
    values = take_rows(raw.table.values, train)
    transforms, facts = fit_transforms(spec, raw.table, values, targets[train], classes)
    splits = {
        name: Split(transforms.apply(take_rows(raw.table.values, index)), targets[index])
        for name, index in rows.items()
        if name != "train"
    }
    tensors = apply_out_of_fold(spec, transforms, values, targets[train], classes)
    splits["train"] = Split(tensors, targets[train])
    if spec.balance is not None:
        from trainers.data.fit.balance import balance_training

        splits["train"], balanced = balance_training(spec, transforms, splits["train"], raw.table, values, classes)
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
    numbers = [name for name, role in table.roles.items() if role in ("number", "date") and name not in table.lists]
    blocks: list[Block] = number_blocks(spec, numbers, values, targets) if numbers else []
    outputs = _list_outputs(spec, table, values, targets)
    for name, role in table.roles.items():
        column = values[name]
        if role == "category":
            assert isinstance(column, Texts)
            blocks.append(category_block(spec, name, column, targets, len(classes)))
        elif role == "text":
            from trainers.data.fit.text import text_block

            assert isinstance(column, Texts)
            block = text_block(spec, name, column, alone=set(table.roles.values()) == {"text"})
            if spec.encode.text == "token_ids":
                outputs.append(Output(name=f"{name}_ids", datatype="INT64", blocks=(block,)))
            else:
                blocks.append(block)
    facts: dict[str, Any] = {}
    if blocks:
        features = Output(name=FEATURES, blocks=tuple(blocks))
        outputs.insert(0, features)
    transforms = Transforms(
        columns=table.columns, ignored=table.ignored, outputs=tuple(outputs),
        seen=seen_columns(table.roles, values), example=example_row(table.columns, values),
    )  # fmt: skip
    if blocks and spec.select is not None:
        from trainers.data.fit.select import select_features

        matrix = apply_out_of_fold(spec, transforms, values, targets, classes)["features"]
        features, facts["selection"] = select_features(spec.select, features, matrix, targets, bool(classes))
        transforms = transforms.model_copy(update={"outputs": (features, *outputs[1:])})
    facts["num_features"] = {output.name: len(output.features) for output in transforms.outputs}
    facts["columns"] = dict(table.roles)
    return transforms, facts


def _list_outputs(spec: DataSpec, table: Table, values: Mapping[str, Values], targets: np.ndarray) -> list[Output]:
    """An input of its own for each list of numbers, as long as the list: imputed and scaled, without bins."""
    number = "standard" if spec.encode.number == "piecewise_linear" else spec.encode.number
    plain = spec.model_copy(update={
        "encode": spec.encode.model_copy(update={"number": number}),
        "clean": spec.clean.model_copy(update={"missing_indicators": False}),
    })  # fmt: skip
    outputs = []
    for parent in dict.fromkeys(table.lists.values()):
        items = [name for name, of in table.lists.items() if of == parent and table.roles.get(name) == "number"]
        name = parent if parent != FEATURES else f"{parent}_list"
        if items:
            outputs.append(Output(name=name, blocks=tuple(number_blocks(plain, items, values, targets))))
    return outputs


def apply_out_of_fold(
    spec: DataSpec, transforms: Transforms, values: Mapping[str, Values], targets: np.ndarray, classes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Tensors of the training rows. Target encodings of a fold come from the other folds (cross-fitting)."""
    if spec.encode.category != "target" or "category" not in _kinds(transforms):
        return transforms.apply(values)
    folds = np.random.default_rng(spec.split.seed).permutation(len(targets)) % FOLDS
    tensors = {
        tensor.name: np.empty((len(targets), *tensor.item_shape), tensor.dtype) for tensor in transforms.signature()
    }
    for fold in range(FOLDS):
        inside, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if len(inside) == 0:
            continue
        refitted = _with_target_encodings(spec, transforms, take_rows(values, others), targets[others], len(classes))
        for name, tensor in refitted.apply(take_rows(values, inside)).items():
            tensors[name][inside] = tensor
    return tensors


def _kinds(transforms: Transforms) -> set[str]:
    steps = (step for output in transforms.outputs for block in output.blocks for step in block.steps)
    return {"category" for step in steps if isinstance(step, TargetEncode)}


def _with_target_encodings(
    spec: DataSpec, transforms: Transforms, values: Mapping[str, Values], targets: np.ndarray, num_classes: int
) -> Transforms:
    """The same transforms with every target encoding fitted on these rows."""

    def refit(block: Block) -> Block:
        column = values[block.columns[0]]
        if not isinstance(block.steps[0], TargetEncode) or not isinstance(column, Texts):
            return block
        step = fit_target_encoding(column, targets, num_classes, spec.encode.target_smoothing)
        return block.model_copy(update={"steps": (step,)})

    outputs = tuple(
        output.model_copy(update={"blocks": tuple(refit(block) for block in output.blocks)})
        for output in transforms.outputs
    )
    return transforms.model_copy(update={"outputs": outputs})


def take_rows(values: Mapping[str, Values], rows: np.ndarray) -> dict[str, Values]:
    """The same columns with these rows."""
    return {name: take(column, rows) for name, column in values.items()}


def take(column: Values, rows: np.ndarray) -> Values:
    """Rows of one column. Its words are those that these rows use, in alphabetical order: others would be a leak."""
    if not isinstance(column, Texts):
        return column[rows]
    codes = column.codes[rows]
    used = np.unique(codes[codes >= 0])
    order = used[np.argsort(np.array(column.words, dtype=object)[used], kind="stable")]
    places = np.full(len(column.words) + 1, -1, dtype=np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return Texts(places[codes], tuple(column.words[code] for code in order))
