"""The closed vocabulary of fitted steps, each as data with an `apply` in NumPy.

A block's values flow through its steps: `Texts` or an (N, K) float64 matrix in, a matrix out of the last one.
Invariant: a step is a pure function of its fields and its input, row by row: no row sees another one.

Covered: impute (constants, nearest neighbors), missing indicator, clip, scale, quantiles, one-hot, ordinal, target
encoding, hashing, word counts, token ids. Not covered: fitting (trainers/data), images.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cluster.bundle.transforms.columns import Texts
from cluster.bundle.transforms.tokens import Vocabulary
from cluster.spec.base import StrictSpec

Floats = tuple[float, ...]
BEYOND = 3.0  # an outlier counts as at most three outer bins away, so that one row cannot dominate a batch
NEIGHBOR_BLOCK_ROWS = 256  # 256 rows × 1,000 reference rows × 8 bytes = 2 MiB of distances at a time


class Impute(StrictSpec):
    """Replace NaN by one constant a column: the mean, median, mode or a value of the user's."""

    op: Literal["impute"] = "impute"
    values: Floats

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(matrix), np.asarray(self.values), matrix)


class ImputeNeighbors(StrictSpec):
    """Replace NaN by the mean of the nearest reference rows that have the value (scikit-learn's KNNImputer)."""

    op: Literal["impute_neighbors"] = "impute_neighbors"
    neighbors: Annotated[int, Field(gt=0)]
    reference: tuple[tuple[float | None, ...], ...]
    """Training rows; null where missing."""
    fallback: Floats
    """Column means, for rows without any value in common with the reference."""

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        reference = np.array(self.reference, dtype=np.float64)
        result = matrix.copy()
        holes = np.flatnonzero(np.isnan(matrix).any(axis=1))
        for start in range(0, len(holes), NEIGHBOR_BLOCK_ROWS):
            rows = holes[start : start + NEIGHBOR_BLOCK_ROWS]
            distances = _distances(matrix[rows], reference)
            for place, row in enumerate(rows):
                self._fill(result[row], distances[place], reference)
        return result

    def _fill(self, row: np.ndarray, distances: np.ndarray, reference: np.ndarray) -> None:
        for column in np.flatnonzero(np.isnan(row)):
            usable = ~np.isnan(reference[:, column]) & ~np.isnan(distances)
            near = np.argsort(distances[usable], kind="stable")[: self.neighbors]
            row[column] = reference[usable, column][near].mean() if len(near) else self.fallback[column]


class MissingIndicator(StrictSpec):
    """1 where a value is missing, else 0."""

    op: Literal["missing_indicator"] = "missing_indicator"

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        return np.isnan(matrix).astype(np.float64)


class Clip(StrictSpec):
    """Limit each column to its bounds."""

    op: Literal["clip"] = "clip"
    low: Floats
    high: Floats

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        return np.clip(matrix, self.low, self.high)


class Scale(StrictSpec):
    """(x - offset) / divisor: standard, robust and min-max scaling."""

    op: Literal["scale"] = "scale"
    offset: Floats
    divisor: Floats

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        return (matrix - np.asarray(self.offset)) / np.asarray(self.divisor)


class Quantile(StrictSpec):
    """Each column to its rank in [0, 1] between learned quantiles (scikit-learn's QuantileTransformer)."""

    op: Literal["quantile"] = "quantile"
    references: Floats
    quantiles: tuple[Floats, ...]
    """One ascending list a column, as long as `references`."""

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        return np.stack([self._rank(matrix[:, k], np.asarray(q)) for k, q in enumerate(self.quantiles)], axis=1)

    def _rank(self, values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
        """The mean of ranking from below and from above, so that ties get the middle of their ranks."""
        references = np.asarray(self.references)
        up = np.interp(values, quantiles, references)
        down = np.interp(-values, -quantiles[::-1], -references[::-1])
        rank = 0.5 * (up - down)
        rank = np.where(values >= quantiles[-1], 1.0, rank)
        return np.where(values <= quantiles[0], 0.0, rank)


class PiecewiseLinear(StrictSpec):
    """How far a number has come through each of its bins, 0 to 1: a network sees thresholds without losing order.

    Source: Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning" (2022).
    """

    op: Literal["piecewise_linear"] = "piecewise_linear"
    edges: tuple[Annotated[Floats, Field(min_length=2)], ...]
    """Ascending edges a column; B edges make B - 1 features. The outer bins go on beyond their edges."""

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        return np.concatenate([self._bins(matrix[:, k], np.asarray(e)) for k, e in enumerate(self.edges)], axis=1)

    def _bins(self, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
        way = (values[:, None] - edges[:-1]) / np.diff(edges)
        low, high = np.zeros(len(edges) - 1), np.ones(len(edges) - 1)
        low[0], high[-1] = -BEYOND, BEYOND
        return np.clip(way, low, high)


class OneHot(StrictSpec):
    """One column a category; all zero for an unknown or missing one, unless a bucket takes it."""

    op: Literal["one_hot"] = "one_hot"
    categories: tuple[str, ...]
    bucket_unknown: bool = False
    """A further column for values that training did not know (or did not keep)."""
    bucket_missing: bool = False
    """A further column for missing values, the last one."""

    def apply(self, texts: Texts) -> np.ndarray:
        width = len(self.categories) + self.bucket_unknown + self.bucket_missing
        codes = _look_up(texts, self.categories)
        unknown, missing = codes == len(self.categories), codes == len(self.categories) + 1
        codes = np.where(unknown, len(self.categories) if self.bucket_unknown else -1, codes)
        codes = np.where(missing, width - 1 if self.bucket_missing else -1, codes)
        matrix = np.zeros((len(texts), width))
        rows = np.flatnonzero(codes >= 0)
        matrix[rows, codes[rows]] = 1.0
        return matrix


class Ordinal(StrictSpec):
    """The index of a category; C for an unknown one, C + 1 for a missing one."""

    op: Literal["ordinal"] = "ordinal"
    categories: tuple[str, ...]

    def apply(self, texts: Texts) -> np.ndarray:
        return _look_up(texts, self.categories).astype(np.float64)[:, None]


class TargetEncode(StrictSpec):
    """Smoothed mean of the target a category; one column a class for more than two classes."""

    op: Literal["target_encode"] = "target_encode"
    categories: tuple[str, ...]
    values: tuple[Floats, ...]
    default: Floats
    """For unknown and missing values: the mean over the training rows."""

    def apply(self, texts: Texts) -> np.ndarray:
        table = np.array([*self.values, self.default, self.default], dtype=np.float64)
        return table[_look_up(texts, self.categories)]


class HashBuckets(StrictSpec):
    """One column a bucket; CRC-32 of the text says which. A missing value is all zero."""

    op: Literal["hash_buckets"] = "hash_buckets"
    buckets: Annotated[int, Field(gt=0)]

    def apply(self, texts: Texts) -> np.ndarray:
        places = [zlib.crc32(word.encode()) % self.buckets for word in texts.words]
        codes = np.array([*places, -1], dtype=np.int64)[texts.codes]
        matrix = np.zeros((len(texts), self.buckets))
        rows = np.flatnonzero(codes >= 0)
        matrix[rows, codes[rows]] = 1.0
        return matrix


class WordCounts(StrictSpec):
    """Counts of known tokens times their weight, each row of unit length (TF-IDF). A missing text is all zero."""

    op: Literal["word_counts"] = "word_counts"
    vocabulary: Vocabulary
    weights: Floats
    """One a token of the vocabulary."""
    sublinear: bool = True
    """1 + log(count) in place of the count."""

    def apply(self, texts: Texts) -> np.ndarray:
        table = np.zeros((len(texts.words) + 1, len(self.weights)))
        for row, word in enumerate(texts.words):
            ids, counts = np.unique(self.vocabulary.encode(word), return_counts=True)
            if len(ids):
                table[row, ids] = 1.0 + np.log(counts) if self.sublinear else counts
        table *= np.asarray(self.weights)
        norms = np.sqrt((table**2).sum(axis=1, keepdims=True))
        return (table / np.where(norms == 0, 1.0, norms))[texts.codes]


class TokenIds(StrictSpec):
    """Token ids of a text, cut or padded to a length. A missing text is all padding."""

    op: Literal["token_ids"] = "token_ids"
    vocabulary: Vocabulary
    length: Annotated[int, Field(gt=0)]

    def apply(self, texts: Texts) -> np.ndarray:
        table = np.full((len(texts.words) + 1, self.length), self.vocabulary.padding_id, dtype=np.int64)
        for row, word in enumerate(texts.words):
            ids = self.vocabulary.encode(word)[: self.length]
            table[row, : len(ids)] = ids
        return table[texts.codes]


Step = Annotated[
    Impute
    | ImputeNeighbors
    | MissingIndicator
    | Clip
    | Scale
    | Quantile
    | PiecewiseLinear
    | OneHot
    | Ordinal
    | TargetEncode
    | HashBuckets
    | WordCounts
    | TokenIds,
    Field(discriminator="op"),
]


def apply_steps(steps: tuple[Any, ...], values: Any) -> np.ndarray:
    """Run values through steps in order."""
    for step in steps:
        values = step.apply(values)
    return values


def _look_up(texts: Texts, categories: tuple[str, ...]) -> np.ndarray:
    """(N,) int64 index of each text's category, C where unknown, C + 1 where missing."""
    index = {category: number for number, category in enumerate(categories)}
    places = [index.get(word, len(categories)) for word in texts.words]
    return np.array([*places, len(categories) + 1], dtype=np.int64)[texts.codes]


def _distances(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(R, M) squared distances over the columns that both have, scaled up for those missing; NaN for none.

    Source: scikit-learn's nan_euclidean_distances, without its final root, which changes no order.
    """
    have, known = ~np.isnan(rows), ~np.isnan(reference)
    a, b = np.where(have, rows, 0.0), np.where(known, reference, 0.0)
    common = have.astype(np.float64) @ known.T.astype(np.float64)
    squares = np.zeros(common.shape)
    for column in range(rows.shape[1]):
        both = have[:, column][:, None] & known[:, column][None, :]
        squares += np.where(both, (a[:, column][:, None] - b[:, column][None, :]) ** 2, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(common > 0, squares * rows.shape[1] / common, np.nan)
