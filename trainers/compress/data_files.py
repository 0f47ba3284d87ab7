"""Rows of `manta compress --data`: a prepared folder, an `.npz`, or a table of raw rows.

Invariant: what comes back fits the graph (names, shapes, classes) and holds a calibration and a gate split, or a
DataError names the line or array that does not fit.

Covered: prepared folders; `.npz` with the graph's inputs and `targets`; CSV, TSV, JSON Lines and Parquet, through the
bundle's own transforms, or as the numbers of a bare graph's one input. Not covered: images and several inputs in a
table of a bare graph (give an `.npz`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cluster.bundle.files import TRANSFORMS
from cluster.bundle.manifest import BundleManifest
from cluster.bundle.signature import DATATYPE_OF, TensorSpec
from cluster.bundle.transforms import Column, Transforms, load_transforms
from cluster.errors import DataError
from trainers.data.shards import DATASET, PreparedData, Split, open_prepared, write_prepared
from trainers.data.targets import class_labels
from trainers.export.graph_file import graph_inputs
from trainers.export.session import predict_graph

CALIBRATION_SHARE = 0.2
CALIBRATION_ROWS_MAX = 512
SPLIT_SEED = 7
TARGETS = "targets"
TARGET_NAMES = (TARGETS, "target")
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".jsonl", ".ndjson", ".parquet", ".pq")


@dataclass(frozen=True)
class Source:
    """What is compressed."""

    name: str
    graph: Path
    manifest: BundleManifest | None
    """None for a bare ONNX file."""
    folder: Path

    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs of the graph."""
        return graph_inputs(onnx.load(str(self.graph), load_external_data=False))


@dataclass(frozen=True)
class Rows:
    """Inputs of the graph, and one target a row: numbers, or labels as text."""

    inputs: dict[str, np.ndarray]
    targets: np.ndarray


def open_data(source: Source, data: Path | None, scratch: Path, target_column: str | None = None) -> PreparedData:
    """The rows: a prepared folder, a file, or the bundle's own run's. Raises DataError, ModelError."""
    if data is None:
        data = source.folder.parent / "stages" / "prepare"
        if not (data / DATASET).exists():
            raise DataError(
                f"Cannot compress {source.name}",
                found="no data was given, and the bundle does not lie in its run's folder",
                rule="candidates are calibrated and judged on real rows",
                remedy="Give --data: a prepared folder (runs/NAME/stages/prepare), a table, or an .npz with inputs "
                "and targets.",
            )
    if data.is_dir():
        return open_prepared(data)
    rows = _read_table(source, data, target_column) if data.name.lower().endswith(TABLES) else _read_npz(source, data)
    rows = Rows(rows.inputs, _flat_targets(rows.targets))
    signature = _signature_of(source, rows.inputs)
    targets, classes = _targets_of(source, rows)
    write_prepared(
        scratch,
        _split(rows.inputs, targets, bool(classes)),
        task="classification" if classes else "regression",
        classes=classes,
        inputs=signature,
    )
    return open_prepared(scratch)


def _read_npz(source: Source, data: Path) -> Rows:
    attempted = f"Cannot read the rows {data}"
    rule = "give an .npz of plain arrays, or a table (" + ", ".join(TABLES) + ")"
    try:
        with data.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaves a torn file open
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(attempted, found="there is no such file", remedy="Mend --data.") from None
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        single = isinstance(error, TypeError | AttributeError)  # numpy has opened an .npy, which is no archive
        raise DataError(
            attempted, found="it holds one array without a name" if single else str(error), rule=rule
        ) from None
    names = [value.name for value in source.inputs()]
    missing = [name for name in (*names, TARGETS) if name not in arrays]
    if missing:
        raise DataError(
            attempted,
            found=f"it has {', '.join(sorted(arrays)) or 'no arrays'}",
            rule=f"it needs {', '.join((*names, TARGETS))}",
            remedy=f"Add {', '.join(missing)}.",
        )
    lengths = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in (*names, TARGETS)}
    if len(set(lengths.values())) > 1:
        raise DataError(attempted, found=f"numbers of rows differ: {lengths}", rule="one target for each row")
    return Rows({name: arrays[name] for name in names}, arrays[TARGETS])


def _read_table(source: Source, data: Path, target_column: str | None) -> Rows:
    """Raw rows through the bundle's transforms; for a bare graph, columns side by side as its one input."""
    from trainers.data.check import WITH_HEADER, read_any, source_of

    table = read_any(source_of(str(data), WITH_HEADER), str(data))
    target = _target_column(table.column_names, data, target_column)
    features = [name for name in table.column_names if name != target]
    targets = np.array([str(value) for value in table.column(target).to_pylist()], dtype=object)
    transforms = None
    if source.manifest is not None and TRANSFORMS in source.manifest.files:
        transforms = load_transforms(json.loads((source.folder / TRANSFORMS).read_text(encoding="utf-8")))
    if isinstance(transforms, Transforms):
        used = [column.name for column in transforms.columns if column.name in features]
        others = [name for name in features if name not in used and name not in transforms.ignored]
        return Rows(transforms.apply_rows(table.select([*used, *others]).to_pylist()), targets)
    return Rows(_stacked(source, data, table.select(features)), targets)


def _stacked(source: Source, data: Path, table: Any) -> dict[str, np.ndarray]:
    """Number columns side by side, in the order of the file, as the graph's only input."""
    inputs = source.inputs()
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if len(inputs) != 1 or len(shape) != 2 or shape[1] not in (0, table.num_columns):
        takes = ", ".join(f"{one.name} {[dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]}"
                          for one in inputs)  # fmt: skip
        raise DataError(
            f"Cannot read the rows {data}",
            found=f"it has {table.num_columns} columns beside the target, the graph takes {takes}",
            rule="columns of a table are put side by side as the one input of a graph",
            remedy="Leave other columns out, or give an .npz with the graph's inputs and 'targets'.",
        )
    columns = [
        Column(name=name, kind="number").from_rows(table.column(name).to_pylist()) for name in table.column_names
    ]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type)
    return {inputs[0].name: np.stack([np.asarray(column) for column in columns], axis=1).astype(dtype)}


def _target_column(names: list[str], data: Path, column: str | None) -> str:
    found = [name for name in ((column,) if column else TARGET_NAMES) if name in names]
    if not found:
        raise DataError(
            f"Cannot read the rows {data}",
            found=f"it has no column '{column or TARGETS}'",
            rule="its columns are " + ", ".join(names[:20]) + (", …" if len(names) > 20 else ""),
            remedy="Name the column with the answers by --target-column.",
        )
    return found[0]


def _flat_targets(targets: np.ndarray) -> np.ndarray:
    """(N,) targets of (N,) or (N, 1) ones; bytes as text. Raises DataError for other shapes and types."""
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.dtype.kind in "SU":
        targets = np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in targets.tolist()],
                           dtype=object)  # fmt: skip
    if targets.ndim != 1 or targets.dtype.kind not in "biufO":
        raise DataError(
            "Cannot compress with these rows",
            found=f"targets have the shape {list(targets.shape)} and the type {targets.dtype}",
            rule="a row has one target: a class, or a number",
            remedy="Give class numbers, not one column a class (argmax of it).",
        )
    return targets


def _signature_of(source: Source, arrays: Mapping[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    if source.manifest is not None:
        source.manifest.signature.check_inputs(arrays)
        return source.manifest.signature.inputs
    for name, array in arrays.items():
        if array.dtype not in DATATYPE_OF or not array.ndim:
            raise DataError(
                "Cannot compress with these rows",
                found=f"'{name}' has the type {array.dtype} and the shape {list(array.shape)}",
                rule="inputs are arrays of numbers with one row on axis 0",
            )
    return tuple(
        TensorSpec.model_validate({"name": name, "datatype": DATATYPE_OF[array.dtype], "shape": (-1, *array.shape[1:])})
        for name, array in arrays.items()
    )


def _targets_of(source: Source, rows: Rows) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices and one label for each output; or values and no label, for a graph with one output."""
    _check_rows(rows.targets)
    width = predict_graph(source.graph, {name: array[:1] for name, array in rows.inputs.items()}).shape[-1]
    regression = source.manifest.task == "regression" if source.manifest else width == 1
    numbers = _numbers(rows.targets)
    if regression:
        if numbers is None:
            raise _wrong_targets(f"targets such as {str(rows.targets[0])!r}", "the graph has one output: a number")
        return numbers.astype(np.float32), ()
    classes = source.manifest.classes if source.manifest else tuple(str(label) for label in range(width))
    if source.manifest is not None and rows.targets.dtype == object:
        return _indices_of(class_labels(numbers if numbers is not None else rows.targets), classes), classes
    if numbers is None or (numbers != np.floor(numbers)).any():
        odd = rows.targets[0] if numbers is None else numbers[numbers != np.floor(numbers)][0]
        raise _wrong_targets(f"targets such as {odd!r}", f"a class is a number from 0 to {width - 1}")
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0 or highest >= width:
        raise _wrong_targets(
            f"targets go from {lowest} to {highest}",
            f"the graph has {width} outputs, so a class is a number from 0 to {width - 1}",
        )
    return numbers.astype(np.int64), classes


def _indices_of(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    places = {label: index for index, label in enumerate(classes)}
    unknown = sorted({str(label) for label in labels} - places.keys())
    if unknown:
        raise _wrong_targets(f"targets such as {unknown[0]!r}", "the bundle's classes are " + ", ".join(classes[:20]))
    return np.array([places[str(label)] for label in labels], dtype=np.int64)


def _numbers(targets: np.ndarray) -> np.ndarray | None:
    """Targets as float64, or None where one of them is a text. Raises DataError for NaN and infinity."""
    try:
        numbers = targets.astype(np.float64)
    except ValueError:
        return None
    if bad := int((~np.isfinite(numbers)).sum()):
        raise _wrong_targets(f"{bad} of {len(numbers)} targets are NaN or infinite", "each row has an answer")
    return numbers


def _wrong_targets(found: str, rule: str) -> DataError:
    return DataError(
        "Cannot compress with these rows",
        found=found,
        rule=rule,
        remedy="Give targets as indices of the graph's outputs, or the labels of the bundle.",
    )


def _check_rows(targets: np.ndarray) -> None:
    if len(targets) < 2 or len(set(targets.tolist())) < 2:
        raise DataError(
            "Cannot split the rows",
            found=f"{len(targets)} rows of {len(set(targets.tolist()))} class(es)",
            rule="calibration and gate both need rows, of more than one class",
            remedy="Give more rows.",
        )


def _split(arrays: dict[str, np.ndarray], targets: np.ndarray, stratify: bool) -> dict[str, Split]:
    """A stratified share for calibration, the rest for the gate."""
    from sklearn.model_selection import train_test_split

    rows = len(targets)
    calibration = min(CALIBRATION_ROWS_MAX, max(1, int(rows * CALIBRATION_SHARE)))
    counts = np.unique(targets, return_counts=True)[1]
    enough = stratify and counts.min() >= 2 and calibration >= len(counts)
    gate, held = train_test_split(
        np.arange(rows), test_size=calibration, random_state=SPLIT_SEED, stratify=targets if enough else None
    )
    chosen = {"gate": np.sort(gate), "calibration": np.sort(held)}
    return {
        name: Split({key: array[index] for key, array in arrays.items()}, targets[index])
        for name, index in chosen.items()
    }
