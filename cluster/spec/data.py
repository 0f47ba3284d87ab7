"""`data`: where the rows come from, which column is the target, how rows are split and prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Auto, Fraction, StrictSpec

SPLITS = ("train", "validation", "calibration", "gate", "test")
"""What each split is for: fit; choose epochs and trials; calibrate quantization; accept or reject compression;
the final figure, read once."""


class SklearnSource(StrictSpec):
    """A data set that scikit-learn ships. `digits` is read as 8×8 gray images, the others as tables."""

    kind: Literal["sklearn"]
    dataset: Literal["digits", "breast_cancer", "wine", "iris"]


class CsvSource(StrictSpec):
    """A delimited text file, plain or gzip."""

    kind: Literal["csv"]
    path: str
    delimiter: str = ","
    encoding: str = "utf-8"
    missing: tuple[str, ...] = ("", "?", "NA", "NaN", "nan", "null")
    """Texts that mean "no value", compared after white space is stripped."""


class ParquetSource(StrictSpec):
    """A Parquet file."""

    kind: Literal["parquet"]
    path: str


class NumpySource(StrictSpec):
    """Arrays in `.npy` files, or two arrays of one `.npz`."""

    kind: Literal["numpy"]
    inputs: str
    """(N, …) array: `file.npy` or `file.npz:name`."""
    targets: str
    """(N,) array: `file.npy` or `file.npz:name`."""


class IdxSource(StrictSpec):
    """Images and labels in the IDX format of MNIST, plain or gzip."""

    kind: Literal["idx"]
    images: str
    labels: str


Source = Annotated[SklearnSource | CsvSource | ParquetSource | NumpySource | IdxSource, Field(discriminator="kind")]


class SplitSpec(StrictSpec):
    """How rows are divided. Each share is a fraction of all rows (at most 1) or a number of rows (2 or more)."""

    train: Auto | float | int = "auto"
    """`auto`: whatever the other splits leave."""
    validation: float | int = 0.1
    calibration: float | int = 0.05
    gate: float | int = 0.1
    test: float | int = 0.15
    stratify: bool = True
    """Keep the share of each class equal in all splits."""
    seed: int = 7


class DataSpec(StrictSpec):
    """Where the rows come from and how they become shards."""

    source: Source
    target: str = "target"
    """Name of the target column of a table; arrays and images call theirs `target`."""
    task: Auto | Literal["classification", "regression"] = "auto"
    split: SplitSpec = SplitSpec()
    drop_columns: tuple[str, ...] = ()
    max_missing: Fraction = 1.0
    """Drop a feature column whose share of missing values is above this."""
