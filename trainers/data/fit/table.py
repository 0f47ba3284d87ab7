"""Fit a table's transforms on its training rows.

Invariant: sees training rows alone; every split, the training one too, is then made by the exported transforms
themselves (cluster/bundle/transforms), which is the code that serving runs.

Covered: imputing, scaling, categories, dates, free text; target encodings that no row's own target is in.
Not covered: images (arrays.py); selection and balance, which need encoded rows (prepare.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cluster.bundle.transforms import ArrayTransforms, Block, Output, Texts, Transforms, Values
from cluster.bundle.transforms.steps import TargetEncode
from cluster.spec.data import DataSpec
from trainers.data.fit.categories import category_block, target_encoding
from trainers.data.fit.numbers import number_blocks
from trainers.data.fit.seen import example_row, seen_columns
from trainers.data.fit.training_statistics import FOLDS, Statistics, folds_of, take_rows
from trainers.data.read.raw import ITEMS, TableRules

FEATURES = "features"  # name of the tensor that most columns go to


@dataclass(frozen=True)
class Fitted:
    """Transforms, and those that training rows themselves go through."""

    transforms: Transforms | ArrayTransforms
    folds: tuple[Transforms, ...] = ()
    """Cross-fitted target encodings: of the rows of a fold, made of the other folds. Empty where there are none."""
    seed: int = 0
    """Of the folds."""

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Names of each tensor's columns; none of arrays."""
        if isinstance(self.transforms, ArrayTransforms):
            return {}
        return {output.name: output.features for output in self.transforms.outputs}

    def apply(self, values: Mapping[str, Values], numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Tensors of rows. `numbers`: (N,) uint64 of training rows; None: of others."""
        if isinstance(self.transforms, ArrayTransforms):
            return self.transforms.apply(np.asarray(values[ITEMS]))
        if not self.folds or numbers is None:
            return self.transforms.apply(values)
        folds = folds_of(numbers, self.seed)
        tensors = {tensor.name: np.empty((len(numbers), *tensor.item_shape), tensor.dtype)
                   for tensor in self.transforms.signature()}  # fmt: skip
        for fold, transforms in enumerate(self.folds):
            inside = np.flatnonzero(folds == fold)
            if len(inside):
                for name, tensor in transforms.apply(take_rows(values, inside)).items():
                    tensors[name][inside] = tensor
        return tensors


def fit_transforms(rules: TableRules, training: Statistics) -> Transforms:
    """Transforms of all columns."""
    spec = rules.spec
    numbers = [name for name, role in rules.roles.items() if role in ("number", "date") and name not in rules.lists]
    blocks: list[Block] = number_blocks(spec, numbers, training) if numbers else []
    outputs = _list_outputs(spec, rules, training)
    for name, role in rules.roles.items():
        if role == "category":
            blocks.append(category_block(spec, name, training))
        elif role == "text":
            from trainers.data.fit.text import text_block

            column = training.sample.values[name]
            assert isinstance(column, Texts)
            block = text_block(spec, name, column, alone=set(rules.roles.values()) == {"text"})
            if spec.encode.text == "token_ids":
                outputs.append(Output(name=f"{name}_ids", datatype="INT64", blocks=(block,)))
            else:
                blocks.append(block)
    if blocks:
        outputs.insert(0, Output(name=FEATURES, blocks=tuple(blocks)))
    return Transforms(
        columns=rules.columns, ignored=rules.ignored, outputs=tuple(outputs),
        seen=seen_columns(rules.roles, training), example=example_row(rules.columns, training.head.values),
    )  # fmt: skip


def cross_fitted(spec: DataSpec, transforms: Transforms, training: Statistics) -> Fitted:
    """With the transforms of each fold's rows, where a category is encoded by the target."""
    if not training.sums:
        return Fitted(transforms)

    def without(block: Block, fold: int) -> Block:
        if not isinstance(block.steps[0], TargetEncode):
            return block
        step = target_encoding(training.sums[block.columns[0]], spec.encode.target_smoothing, without=fold)
        return block.model_copy(update={"steps": (step,)})

    folds = []
    for fold in range(FOLDS):
        outputs = tuple(
            output.model_copy(update={"blocks": tuple(without(block, fold) for block in output.blocks)})
            for output in transforms.outputs
        )
        folds.append(transforms.model_copy(update={"outputs": outputs}))
    return Fitted(transforms, tuple(folds), spec.split.seed)


def _list_outputs(spec: DataSpec, rules: TableRules, training: Statistics) -> list[Output]:
    """An input of its own for each list of numbers, as long as the list: imputed and scaled, without bins."""
    number = "standard" if spec.encode.number == "piecewise_linear" else spec.encode.number
    plain = spec.model_copy(update={
        "encode": spec.encode.model_copy(update={"number": number}),
        "clean": spec.clean.model_copy(update={"missing_indicators": False}),
    })  # fmt: skip
    outputs = []
    for parent in dict.fromkeys(rules.lists.values()):
        items = [name for name, of in rules.lists.items() if of == parent and rules.roles.get(name) == "number"]
        name = parent if parent != FEATURES else f"{parent}_list"
        if items:
            outputs.append(Output(name=name, blocks=tuple(number_blocks(plain, items, training))))
    return outputs
