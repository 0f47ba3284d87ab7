"""`data`: where the rows come from, which column is the target, how rows are split and prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from cluster.spec.base import Auto, Fraction, PositiveFloat, Seed, StrictSpec
from cluster.spec.date_format import check_date_format

SPLITS = ("train", "validation", "calibration", "gate", "test")
"""What each split is for: fit; choose epochs and trials; calibrate quantization; accept or reject compression;
the final figure, read once."""


class SklearnSource(StrictSpec):
    """A data set that scikit-learn ships. `digits` is read as 8×8 gray images, the others as tables."""

    kind: Literal["sklearn"]
    dataset: Literal["digits", "breast_cancer", "wine", "iris"]


class CsvSource(StrictSpec):
    """Delimited text files: plain, gzip, or a zip of one table. `path` may be a pattern such as `parts/*.csv`, or a URL
    (`s3://…`). What is `auto` is found from the start of the first file, and the run says what it found and why; a file
    that can be read in two ways is an error that shows both."""

    kind: Literal["csv"]
    path: str
    test_path: str | None = None
    """A file that is the test split; `data.split.test` is then not used."""
    delimiter: Auto | Annotated[str, Field(min_length=1, max_length=1)] = ","
    """`auto` chooses among comma, semicolon, tab, `|` and, where no other fits, single spaces."""
    header: Auto | bool = True
    """Whether the first line of the table holds the columns' names; false: it is a row."""
    names: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """The columns' names, in place of the header's; null without a header: `column_1`, `column_2`, …"""
    skip_lines: Auto | Annotated[int, Field(ge=0)] = 0
    """Lines before the table, such as a title. Blank lines there need not be counted."""
    skip_last_lines: Auto | Annotated[int, Field(ge=0)] = 0
    """Lines after the table, such as totals. Blank lines at the end are not counted."""
    comment: Auto | Annotated[str, Field(min_length=1)] | None = None
    """Lines that begin with it are no rows, wherever they stand outside of quotes."""
    quote: Annotated[str, Field(min_length=1, max_length=1)] | None = '"'
    """null: quotes are ordinary characters, as in most tab-separated files."""
    encoding: str = "utf-8"
    missing: tuple[str, ...] = ("", "?", "NA", "NaN", "nan", "null")
    """Texts that mean "no value", compared after white space is stripped."""
    quoted_missing: Auto | Literal["value", "missing"] = "auto"
    """What a text of `missing` is in quotes, in a column of texts: a value, or missing too. `auto`: a value where the
    file quotes its texts and not its numbers. An empty text is missing either way."""
    thousands: Annotated[str, Field(max_length=1)] = ""
    """Separator of thousands inside numbers, such as `,` in "1,234"."""
    decimal: Auto | Literal[".", ","] = "."
    """Mark of decimals: `,` reads "3,14" and refuses "3.14". `auto` finds `thousands` too."""

    @model_validator(mode="after")
    def _two_marks(self) -> CsvSource:
        if self.thousands == self.decimal:
            raise ValueError(f"thousands and decimal are both {self.decimal!r}: one mark cannot be both")
        twice = [name for name in self.names or () if self.names is not None and self.names.count(name) > 1]
        if twice:
            raise ValueError(f"names has {twice[0]!r} twice")
        return self


class JsonlSource(StrictSpec):
    """JSON Lines: one object a line, plain or gzip. `path` may be a pattern or a URL."""

    kind: Literal["jsonl"]
    path: str
    test_path: str | None = None
    """A file that is the test split; `data.split.test` is then not used."""


class ParquetSource(StrictSpec):
    """Parquet files. `path` may be a pattern or a URL."""

    kind: Literal["parquet"]
    path: str
    test_path: str | None = None
    """A file that is the test split; `data.split.test` is then not used."""


FileSource = CsvSource | JsonlSource | ParquetSource


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


class ImageFolderSource(StrictSpec):
    """A folder with one folder of images a class: `root/<class>/*.png`."""

    kind: Literal["image_folder"]
    path: str
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """Height and width that every image is resized to; null: all must have one size already."""
    channels: Literal[1, 3] = 3
    """1 reads gray images."""


class ImageManifestSource(StrictSpec):
    """A CSV, TSV or JSON Lines file that names an image file and its label a row; `data.target` names the label's
    column. Paths are relative to the file's folder."""

    kind: Literal["image_manifest"]
    path: str
    image: str = "path"
    """Column of the image files' paths."""
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """Height and width that every image is resized to; null: all must have one size already."""
    channels: Literal[1, 3] = 3
    """1 reads gray images."""


class TextFilesSource(StrictSpec):
    """Plain text with the label in the name: `root/<label>/<name>.txt`, or `root/<label>.txt` with a sample a line."""

    kind: Literal["text_files"]
    path: str
    sample: Literal["file", "line"] = "file"
    """What one row is."""
    encoding: str = "utf-8"


class PythonSource(StrictSpec):
    """`module:function`, importable from the folder in which manta was started."""

    kind: Literal["python"]
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """Takes no argument and returns a pandas DataFrame, a pyarrow Table, a Ray Dataset, or a pair of arrays
    (inputs, targets)."""
    needs_ray: bool = False
    """Call the function only when the run's Ray session stands: for functions that make a Ray Dataset."""


Source = Annotated[
    SklearnSource
    | CsvSource
    | JsonlSource
    | ParquetSource
    | NumpySource
    | IdxSource
    | ImageFolderSource
    | ImageManifestSource
    | TextFilesSource
    | PythonSource,
    Field(discriminator="kind"),
]


class SplitSpec(StrictSpec):
    """How rows are divided. Each share is a fraction of all rows (at most 1) or a number of rows (2 or more).

    Rows of equal content are always in the same split, and the order of the file has no effect.
    """

    train: Literal["rest"] | float | int = "rest"
    """`rest`: whatever the other splits leave."""
    validation: float | int = 0.1
    calibration: float | int = 0.05
    gate: float | int = 0.1
    test: float | int = 0.15
    stratify: bool = True
    """Keep the share of each class equal in all splits. Not used with `time` and `column`."""
    group: str | None = None
    """Column whose equal values stay in one split (a patient, a user). It is no feature."""
    time: str | None = None
    """Column to order by: train is the oldest part, then validation, calibration, gate and test. It is no feature."""
    column: str | None = None
    """Column that holds the name of each row's split. It is no feature."""
    by_hash: bool = False
    """A row's split follows from its content and the seed alone, so that rows added later move no other row.
    Shares are then fractions, and met only on average."""
    seed: Seed = 7

    @field_validator("train", "validation", "calibration", "gate", "test")
    @classmethod
    def _a_share(cls, value: str | float | int) -> str | float | int:
        if isinstance(value, float | int) and (value < 0 or (value > 1 and value != int(value))):
            raise ValueError("must be a fraction between 0 and 1, or a whole number of rows")
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> SplitSpec:
        used = [name for name in ("group", "time", "column") if getattr(self, name) is not None]
        if len(used) > 1 or (self.by_hash and ("time" in used or "column" in used)):
            names = used + (["by_hash"] if self.by_hash else [])
            raise ValueError(f"{' and '.join(names)} exclude each other: choose one")
        return self


class CleanSpec(StrictSpec):
    """Rules for raw values. They travel with the bundle, so that serving reads a raw row as training did."""

    map_values: dict[str, dict[str, str]] = {}
    """column -> {text: replacement}, after white space is stripped; the target may be named."""
    drop_duplicates: bool = False
    """Keep the first of rows that are equal in all features and the target. Training rows only."""
    drop_missing_rows: tuple[str, ...] = ()
    """Drop rows without a value in one of these columns."""
    infinite: Literal["error", "missing"] = "error"
    """What an infinite feature means."""
    impute: Literal["median", "mean", "mode", "constant", "neighbors"] = "median"
    """How missing numbers are filled. Missing categories have a column of their own."""
    constant: float = 0.0
    """For `impute: constant`."""
    neighbors: Annotated[int, Field(gt=0)] = 5
    """For `impute: neighbors`."""
    missing_indicators: bool = True
    """A 0/1 feature for each number column that has missing values in training."""
    clip_iqr: PositiveFloat | None = None
    """Limit numbers to this many interquartile ranges beyond the quartiles of training; null: no limit."""


class EncodeSpec(StrictSpec):
    """How columns become numbers. Everything is fitted on the training rows alone."""

    number: Auto | Literal["standard", "robust", "min_max", "quantile", "piecewise_linear", "none"] = "auto"
    """`auto`: piecewise linear where there are rows enough to fill the bins, else standard. Piecewise linear: standard,
    and beside it how far the number has come through bins that a small tree finds."""
    bins: Annotated[int, Field(gt=1)] = 16
    """`piecewise_linear`: most bins a column."""
    category: Literal["one_hot", "ordinal", "target", "hash"] = "one_hot"
    max_categories: Annotated[int, Field(gt=1)] = 64
    """`one_hot`: the most frequent ones are kept, all others share a bucket."""
    hash_buckets: Annotated[int, Field(gt=1)] = 32
    target_smoothing: PositiveFloat = 10.0
    """`target`: as many rows of the overall mean are added to each category."""
    text: Literal["word_counts", "token_ids"] = "word_counts"
    """Free text: TF-IDF of word pieces as numbers, or the pieces' ids as INT64 for a model that embeds them."""
    vocabulary: Annotated[int, Field(ge=16)] = 2000
    text_length: Annotated[int, Field(gt=0)] = 64
    """`token_ids`: ids a row."""


class SelectSpec(StrictSpec):
    """Choose among the encoded features by their score on the training rows."""

    method: Literal["mutual_information", "anova", "forest", "variance", "correlation"]
    """`variance`: of the feature brought to [0, 1] by its range in training, so that neither unit nor encoding decides.
    `mutual_information`: columns of few different values (one-hot, indicators) are classes, others quantities."""
    k: Annotated[int, Field(gt=0)] | None = None
    """Keep the k best; at most as many as there are features."""
    threshold: float | None = None
    """Keep those with at least this score; for `correlation`, drop one of each pair correlated above it."""

    @model_validator(mode="after")
    def _one_of(self) -> SelectSpec:
        if (self.k is None) == (self.threshold is None):
            raise ValueError("give either k or threshold")
        if self.method == "correlation" and self.threshold is None:
            raise ValueError("correlation needs a threshold")
        return self


class BalanceSpec(StrictSpec):
    """Against rare classes. Only the training split is ever changed, after splitting and encoding."""

    method: Literal[
        "class_weights", "over", "under", "smote", "smotenc", "borderline_smote", "adasyn", "smote_under", "sampler"
    ]
    """`sampler` draws training rows with replacement until all classes are equally frequent; `smote_under` is SMOTE up
    to half of the largest class, then random under-sampling to equality."""
    neighbors: Annotated[int, Field(gt=0)] = 5
    """For the SMOTE family and ADASYN."""
    seed: Seed = 7


Rule = Literal[
    "class_balance", "codes", "constant", "date_like", "drift", "duplicate_rows", "hidden_missing", "identifier",
    "infinite", "label_noise", "label_variants", "leakage", "missing", "mixed_types", "near_duplicate", "outliers",
    "overlap", "target", "units", "unusable_type", "white_space",
]  # fmt: skip


class QualitySpec(StrictSpec):
    """What the quality report (`manta data check`) may find without stopping the run."""

    fail_on: Literal["error", "warning", "info"] | tuple[Rule, ...] = ()
    """A severity (it and worse ones), or kinds of findings: any of them ends the check stage with an error that names
    them. Findings whose remedy the spec follows do not count. Empty: no report is made."""


class WritingSpec(StrictSpec):
    """How a column's values are written, where they do not show it, or show more than one reading."""

    date: Annotated[str, AfterValidator(check_date_format)] | None = None
    """Dates: strptime's directives such as `%d/%m/%Y %H:%M`, or `epoch_s`, `epoch_ms`, `epoch_us`, `epoch_ns`."""
    unit: Annotated[str, Field(min_length=1)] | None = None
    """Numbers: the unit or currency before or after them, such as `kg`."""
    thousands: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Numbers: the separator of thousands, where it is another one than the source's."""
    decimal: Literal[".", ","] | None = None
    """Numbers: the mark of decimals, where it is another one than the source's."""

    @model_validator(mode="after")
    def _one_kind(self) -> WritingSpec:
        numbers = [part for part in (self.unit, self.thousands, self.decimal) if part is not None]
        if (self.date is None) == (not numbers):
            raise ValueError("must give either date, or unit, thousands and decimal of numbers")
        if self.thousands is not None and self.thousands == (self.decimal or "."):
            raise ValueError(
                f"must not give {self.thousands!r} to both thousands and decimal (which is a point if absent)"
            )
        return self


class DataSpec(StrictSpec):
    """Where the rows come from and how they become shards."""

    source: Source
    target: str = "target"
    """Name of the target column of a table or an image manifest; the labels of other sources get this name."""
    task: Auto | Literal["classification", "regression"] = "auto"
    target_transform: Auto | Literal["none", "standard", "log1p", "yeo_johnson"] = "auto"
    """What a network learns in place of a quantity: its standardized values (`standard`), or those of log(1 + x) or of
    Yeo-Johnson's power. `auto` takes what has the lowest error on validation rows. All of it is fitted on training rows
    and undone inside the exported graph: metrics, gate, search and endpoint speak the target's own unit. `none`: the
    network learns the values as they are."""
    split: SplitSpec = SplitSpec()
    drop_columns: tuple[str, ...] = ()
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    """Files whose table would take more to prepare are prepared past memory, in passes over them; null: half of the
    host's memory. Past memory the splits come by hash or column, and nothing that needs all rows together is there."""
    shards_url: str | None = None
    """A store (a folder, `s3://…`) that prepared shards are copied to, hashed: training workers on nodes that do not
    see the run's folder read them from there, through a copy on their own disk. null: every node sees the folder."""
    max_missing: Fraction = 1.0
    """Drop a feature column whose share of missing values is above this."""
    columns: dict[str, Literal["number", "category", "text", "date", "drop"] | WritingSpec] = {}
    """Declared kinds, or how dates (`{date: "%d/%m/%Y"}`) and numbers (`{unit: kg}`) are written; all other columns are
    inferred, and the check stage says what was."""
    clean: CleanSpec = CleanSpec()
    encode: EncodeSpec = EncodeSpec()
    select: SelectSpec | None = None
    """null keeps all features."""
    balance: BalanceSpec | None = None
    """null trains on the classes as they are."""
    quality: QualitySpec = QualitySpec()
