"""Source of a spec -> `RawData`. Arrays and images here, tables in tables.py.

Invariant: images are (N, C, H, W) float32, arrays (N, …) float32, all finite; labels are text or float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.atomic import digest_json
from cluster.errors import DataError
from cluster.spec.data import (
    DataSpec,
    IdxSource,
    ImageFolderSource,
    ImageManifestSource,
    NumpySource,
    PythonSource,
    SklearnSource,
    TextFilesSource,
)
from trainers.data.hashing import array_keys, text_key
from trainers.data.read.fetch import local_file
from trainers.data.read.files import digest_files
from trainers.data.read.idx import read_idx
from trainers.data.read.raw import ITEMS, Layout, RawData, TableRules, TypedRows

DIGITS_WHITE = 16.0  # scikit-learn's digits count the inked ones of 4×4 bits a pixel

Inspect = Callable[[Any, np.ndarray | None], Any]
"""Takes a table source as it was read (a pyarrow Table) and the splits that files give."""


def read_source(spec: DataSpec, inspect: Inspect | None = None, rules: TableRules | None = None) -> RawData:
    """Read all rows of the source. `rules`: of an earlier reading of a table's files. Raises DataError."""
    source = spec.source
    if isinstance(source, SklearnSource):
        return _read_sklearn(spec, source, inspect)
    if isinstance(source, NumpySource):
        return _read_numpy(source)
    if isinstance(source, IdxSource):
        images, labels = read_idx(source.images), read_idx(source.labels)
        return _arrays(images, labels, digest_files([local_file(source.images), local_file(source.labels)]))
    if isinstance(source, ImageFolderSource):
        from trainers.data.read.images import read_image_folder

        images, names, digest = read_image_folder(source)
        return _arrays(images, names, digest)
    if isinstance(source, ImageManifestSource):
        from trainers.data.read.images import read_image_manifest

        images, names, digest = read_image_manifest(spec, source)
        return _arrays(images, names, digest)
    if isinstance(source, TextFilesSource):
        from trainers.data.read.text_files import read_text_files

        return read_text_files(spec, source, inspect)
    if isinstance(source, PythonSource):
        from trainers.data.read.table_files import call_function

        value = call_function(source.function)
        if isinstance(value, tuple):
            inputs, targets = (np.asarray(array) for array in value)
            return _arrays(inputs, targets, _digest(inputs, targets))
    from trainers.data.read.tables import read_table

    return read_table(spec, inspect, rules)


def _read_sklearn(spec: DataSpec, source: SklearnSource, inspect: Inspect | None) -> RawData:
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{source.dataset}")()
    if source.dataset == "digits":
        digest = _digest(loaded.images, loaded.target)
        return replace(_arrays(loaded.images, loaded.target, digest), white=DIGITS_WHITE)
    import pyarrow as pa

    from trainers.data.read.tables import Origin, table_data

    names = [str(name) for name in loaded.feature_names]
    columns: dict[str, Any] = {name: loaded.data[:, index] for index, name in enumerate(names)}
    target = spec.target if spec.target not in columns else "target"
    columns[target] = np.array([str(loaded.target_names[index]) for index in loaded.target])
    if inspect:
        inspect(pa.table(columns), None)
    return table_data(spec, pa.table(columns), Origin(source.dataset, _digest(loaded.data, loaded.target)))


def _read_numpy(source: NumpySource) -> RawData:
    inputs, targets = _load(source.inputs), _load(source.targets)
    paths = [local_file(_split_name(text)[0]) for text in (source.inputs, source.targets)]
    return _arrays(inputs, targets, digest_files(paths))


def _split_name(text: str) -> tuple[str, str]:
    """`file.npz:name` as file and name; the name of `file.npy` is empty."""
    name, npz, key = text.partition(".npz:")
    return (name + ".npz", key) if npz else (text, "")


def _load(text: str) -> np.ndarray:
    """`file.npy` or `file.npz:name`."""
    name, key = _split_name(text)
    path = local_file(name)
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode=None)
        return np.asarray(loaded if isinstance(loaded, np.ndarray) else loaded[key])
    except KeyError:
        raise DataError(
            f"Cannot read {text}",
            found=f"the archive has no array {key!r}",
            remedy=f"It has {', '.join(loaded.files)}.",
        ) from None
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"Cannot read {text}",
            found=f"it is no NumPy array of numbers: {error}",
            rule="arrays of Python objects are pickles and are never loaded",
            remedy="Save it with numpy.save from an array of numbers.",
        ) from None


def _arrays(inputs: np.ndarray, targets: np.ndarray, digest: str) -> RawData:
    """Check and shape arrays: (N, H, W) and (N, C, H, W) are images, (N, F) and others are arrays."""
    if len(inputs) != len(targets):
        raise DataError(
            "Cannot use the arrays", found=f"there are {len(inputs)} inputs and {len(targets)} targets",
            rule="each row needs one target", remedy="Give files that belong together.",
        )  # fmt: skip
    if len(inputs) == 0:
        raise DataError("Cannot use the arrays", found="they have zero rows", remedy="Give a source that has rows.")
    if targets.ndim != 1:
        raise DataError(
            "Cannot use the targets", found=f"they have shape {list(targets.shape)}", rule="one value a row",
            remedy="Give an (N,) array.",
        )  # fmt: skip
    if inputs.ndim == 1:
        inputs = inputs[:, None]
    values = np.ascontiguousarray(inputs, dtype=np.float32)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        raise DataError(
            "Cannot use the inputs",
            found=f"{len(bad)} of {len(values)} rows hold NaN or infinity, the first is row {bad[0]}",
            rule="arrays must be finite: only tables have rules for missing values",
            remedy="Replace or remove these values in the file.",
        )
    if values.ndim == 3:
        values = values[:, None]
    layout: Layout = "image" if values.ndim == 4 else "array"
    labels = targets.astype(np.float64) if targets.dtype.kind in "iufb" else targets.astype(str).astype(object)
    white = white_value(inputs, values) if layout == "image" and values.shape[1] in (1, 3) else None
    numbers = np.arange(len(values), dtype=np.uint64)
    return RawData(layout, TypedRows({ITEMS: values}, labels, array_keys(values), numbers), digest, white=white)


def white_value(inputs: np.ndarray, values: np.ndarray) -> float | None:
    """What a white pixel is in an array of images: 255 for bytes, 1 for fractions, else nobody can know."""
    if inputs.dtype == np.uint8:
        return 255.0
    return 1.0 if values.min() >= 0 and values.max() <= 1 else None


def _digest(*arrays: np.ndarray) -> str:
    return digest_json([[str(array.dtype), list(array.shape), text_key(array.tobytes())] for array in arrays])
