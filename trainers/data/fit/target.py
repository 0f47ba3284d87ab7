"""Fit the transform of a regression target on training rows, and choose its kind on validation rows.

Networks learn targets near 0 with a deviation near 1, so every target is standardized. A skewed one is bent before
that if it pays: two fast models (ridge regression, boosted trees) learn each form of the target from the prepared
features, and the form with the lowest error in the target's own unit on validation rows is taken. That costs a second
or two, where training three networks would cost two more runs.

Invariant: moments and ends are those of all training rows, whatever their number; nothing but the choice of the kind
has seen a validation row. The same arrays give the same transform, in memory or mapped from shards.

Covered: features of tables, images and arrays, token ids. Not covered: classes; targets of several columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.bundle.target import TargetTransform
from cluster.errors import DataError
from trainers.data.shards import TARGET_FACTS, Split

CHUNK_ROWS = 1 << 20  # 8 MiB of float64 at a time
SAMPLE_ROWS = 20_000  # skewness and Yeo-Johnson's power move in their third digit only beyond
PROBE_ROWS = 4_000  # training rows of the fast models; as many validation rows
PROBE_FEATURES = 256  # spread over the features; images and words have more
BLOCK_ROWS = 256  # read at a time: 150 MiB of images of 3 × 224 × 224
TREES: dict[str, Any] = {
    "max_iter": 30, "learning_rate": 0.2, "max_leaf_nodes": 15, "early_stopping": False, "random_state": 0
}  # fmt: skip
TREE_FEATURES = 64  # those that the target varies with most
RIDGE_SHARE = 1e-3  # of the rows, added to the diagonal: enough against columns that repeat one another
VALIDATION_ROWS_MIN = 30  # an error of fewer rows decides nothing
SKEWNESS_MIN = 0.5  # below it a distribution counts as symmetric, and a bend has nothing to mend
GAIN_MIN = 0.05  # of the error: less is within what some hundred validation rows vary by
NORMAL_QUARTILES = 1.349  # deviations between the quartiles of a normal distribution
REACH = 0.05  # of the training targets' range: AutoGluon's `y_range_extend` for its networks
POWERS = (0.0, 2.0)  # of Yeo-Johnson: within, each branch reaches every number; beyond, answers run into a pole


@dataclass(frozen=True)
class FittedTarget:
    """What was decided about a target."""

    kind: str
    """A value of `data.target_transform`."""
    reason: str
    transform: TargetTransform | None
    """None: the network learns the target's own values."""
    validation_rmse: dict[str, float] = field(default_factory=dict)
    """Kind -> error of the fast models in the target's own unit; empty where they were not asked."""

    def facts(self) -> dict[str, Any]:
        """JSON-able, for `dataset.json`."""
        transform = self.transform.model_dump(mode="json") if self.transform else None
        rmse = {name: float(f"{value:.6g}") for name, value in self.validation_rmse.items()}
        return {"kind": self.kind, "reason": self.reason, "transform": transform, "validation_rmse": rmse}


def target_facts(asked: str, splits: Mapping[str, Split]) -> dict[str, Any]:
    """What `dataset.json` keeps of `fit_target`, under its name."""
    return {TARGET_FACTS: fit_target(asked, splits["train"], splits.get("validation")).facts()}


def fit_target(asked: str, train: Split, validation: Split | None) -> FittedTarget:
    """The transform for `data.target_transform: asked`. Raises DataError for a log1p of negative targets."""
    if asked == "none":
        return FittedTarget("none", "the spec says so", None)
    moments = _moments(train.targets)
    sample = _sample(train.targets, SAMPLE_ROWS)
    if asked != "auto":
        _check_log1p(asked, moments.low)
        return FittedTarget(asked, "the spec says so", _fitted(asked, train.targets, moments, sample))
    standard = _fitted("standard", train.targets, moments, sample)
    if why := _why_not_bent(sample, moments, validation):
        return FittedTarget("standard", why, standard)
    assert validation is not None
    kinds = ("log1p", "yeo_johnson") if moments.low >= 0 else ("yeo_johnson",)
    fitted = {"standard": standard} | {kind: _fitted(kind, train.targets, moments, sample) for kind in kinds}
    errors = probe_errors(fitted, train, validation)
    chosen = "standard"
    for kind in kinds:  # from the simplest on
        if errors[kind] <= (1 - GAIN_MIN) * errors[chosen]:
            chosen = kind
    return FittedTarget(chosen, _told(errors), fitted[chosen], errors)


def probe_errors(fitted: dict[str, TargetTransform], train: Split, validation: Split) -> dict[str, float]:
    """Kind -> RMSE in the target's own unit on validation rows, of the better one of two fast models."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    inside, outside = _spread(len(train), PROBE_ROWS), _spread(len(validation), PROBE_ROWS)
    seen, unseen = _features(train, inside), _features(validation, outside)
    center, scale = seen.mean(axis=0), seen.std(axis=0)
    scale[scale == 0] = 1.0
    seen, unseen = (seen - center) / scale, (unseen - center) / scale
    targets = np.asarray(train.targets[inside], np.float64)
    wanted = np.asarray(validation.targets[outside], np.float64)
    gram = seen.T @ seen + RIDGE_SHARE * len(seen) * np.eye(seen.shape[1])
    errors = {}
    for kind, transform in fitted.items():
        learned = transform.to_learned(targets)
        products = seen.T @ (learned - learned.mean())
        linear = unseen @ np.linalg.solve(gram, products) + learned.mean()
        strong = np.argsort(-np.abs(products), kind="stable")[:TREE_FEATURES]
        trees = HistGradientBoostingRegressor(**TREES).fit(seen[:, strong], learned)
        answers = (linear, trees.predict(unseen[:, strong]))
        errors[kind] = min(float(np.sqrt(np.mean((transform.to_unit(one) - wanted) ** 2))) for one in answers)
    return errors


@dataclass(frozen=True)
class _Moments:
    """Of all training targets."""

    mean: float
    deviation: float
    low: float
    high: float


def _moments(targets: np.ndarray, transform: TargetTransform | None = None) -> _Moments:
    """Exact whatever the number of rows: chunks are added up. `transform`: of the bent targets."""
    rows = len(targets)
    mean = sum(float(chunk.sum()) for chunk in _chunks(targets, transform)) / rows
    squares = sum(float(((chunk - mean) ** 2).sum()) for chunk in _chunks(targets, transform))
    low = min(float(chunk.min()) for chunk in _chunks(targets, transform))
    high = max(float(chunk.max()) for chunk in _chunks(targets, transform))
    return _Moments(mean, float(np.sqrt(squares / rows)) or 1.0, low, high)


def _chunks(targets: np.ndarray, transform: TargetTransform | None) -> Iterator[np.ndarray]:
    for start in range(0, len(targets), CHUNK_ROWS):
        chunk = np.asarray(targets[start : start + CHUNK_ROWS], np.float64)
        yield chunk if transform is None else transform.bent(chunk)


def _fitted(kind: str, targets: np.ndarray, own: _Moments, sample: np.ndarray) -> TargetTransform:
    if kind == "standard":
        return TargetTransform(kind="standard", center=own.mean, scale=own.deviation, spread=own.deviation)
    if kind == "log1p":
        bend = TargetTransform(kind="log1p", spread=own.deviation)
    else:
        first, center, third = (float(value) for value in np.percentile(sample, [25, 50, 75]))
        scale = (third - first) / NORMAL_QUARTILES or own.deviation
        power = _power((sample - center) / scale)
        bend = TargetTransform(kind="yeo_johnson", center=center, scale=scale, power=power, spread=own.deviation)
    inner = _moments(targets, bend)
    reach = REACH * (own.high - own.low)
    least = own.low - reach
    if kind == "log1p":  # a quantity that never was negative stays so
        least = max(least, 0.0 if own.low >= 0 else (own.low - 1.0) / 2.0)
    low, high = (float(value) for value in bend.bent(np.array([least, own.high + reach])))
    return bend.model_copy(update={"mean": inner.mean, "deviation": inner.deviation, "low": low, "high": high})


def _power(standardized: np.ndarray) -> float:
    """Yeo-Johnson's λ by maximum likelihood."""
    from scipy import stats

    return float(np.clip(stats.yeojohnson_normmax(standardized), *POWERS))


def _why_not_bent(sample: np.ndarray, moments: _Moments, validation: Split | None) -> str:
    """Why no bend is tried; empty where one is."""
    skewness = float(np.mean(((sample - moments.mean) / moments.deviation) ** 3))
    if abs(skewness) < SKEWNESS_MIN:
        return f"its skewness in training is {skewness:.2f}, within ±{SKEWNESS_MIN:g}: it is symmetric enough"
    if validation is None or len(validation) < VALIDATION_ROWS_MIN:
        rows = 0 if validation is None else len(validation)
        return f"{rows} validation rows are too few to compare transforms on"
    return ""


def _told(errors: dict[str, float]) -> str:
    figures = ", ".join(f"{value:.5g} with {kind}" for kind, value in errors.items())
    return (
        f"fast models on validation rows have an RMSE of {figures}, in the target's own unit; "
        f"a bend must gain {GAIN_MIN:.0%} on what is simpler"
    )


def _check_log1p(kind: str, low: float) -> None:
    if kind == "log1p" and low <= -1:
        raise DataError(
            "Cannot take log1p of the target",
            found=f"its smallest training value is {low:g}",
            rule="log(1 + x) needs values above -1",
            remedy="Set data.target_transform to yeo_johnson, standard or auto.",
        )


def _spread(rows: int, most: int) -> np.ndarray:
    """Numbers of at most `most` rows, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(np.int64))


def _sample(targets: np.ndarray, most: int) -> np.ndarray:
    return np.asarray(targets[_spread(len(targets), most)], np.float64)


def _features(split: Split, rows: np.ndarray) -> np.ndarray:
    """(n, F) float64 of some rows: numbers side by side, ids counted in buckets."""
    parts = []
    for array in split.inputs.values():
        blocks = [_columns(np.asarray(array[rows[at : at + BLOCK_ROWS]])) for at in range(0, len(rows), BLOCK_ROWS)]
        parts.append(np.concatenate(blocks))
    return np.concatenate(parts, axis=1)


def _columns(block: np.ndarray) -> np.ndarray:
    values = block.reshape(len(block), -1)
    if values.dtype.kind not in "iu":
        return values[:, _spread(values.shape[1], PROBE_FEATURES)].astype(np.float64)
    counts = np.zeros((len(block), PROBE_FEATURES))
    np.add.at(counts, (np.arange(len(block))[:, None], values % PROBE_FEATURES), 1.0)
    return counts
