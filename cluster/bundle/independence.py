"""Does a row's answer depend on the rows it is asked together with? Found by asking, whatever answers.

The batcher joins requests of strangers, so an answer must be the same alone, in any company and beside any padding.
`measure_independence` runs some rows one by one, then in batches of several sizes, in any order, beside other rows,
outliers and padding, and compares.

Invariant: `independent` only if no answer of any output moved by more than is allowed: a 1e-5th of the float graph's
own spread, and the rounding of the number format (kernels for one row and for many add up in another order).

Covered: any number of inputs and outputs of any datatype. Not covered: inputs that a caller's own rows share (several
rows of one request are that caller's business).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Rows = dict[str, np.ndarray]
Answer = Callable[[Rows], Mapping[str, np.ndarray]]

SPREAD_SHARE = 1e-5
ROUNDINGS = 4  # of the largest answer: sums in another order differ by a few of them
EPSILON = {"fp32": 2.0**-23, "int8": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
BATCH_SIZES = (2, 3, 8, 17, 33, 64)  # odd ones, whole vectors, and more rows than a kernel's tile
PROBES = 8  # rows that are asked alone
ROWS_MAX = 72  # rows that are looked at: the probes and the largest company
OUTLIER = 1e4  # times the largest value: a range taken from the batch loses every ordinary value


@dataclass(frozen=True)
class Independence:
    """The answer that moved most, measured by what is allowed for its output."""

    output: str
    change: float
    """Largest difference from the answer that the row has alone; for labels the share of rows that changed."""
    allowed: float
    rows: int
    """Of the batch in which it happened."""
    company: str

    @property
    def independent(self) -> bool:
        return self.change <= self.allowed

    def sentence(self) -> str:
        """Half a sentence for reasons and logs."""
        return (
            f"in a batch of {self.rows} with {self.company} a row's answer ('{self.output}') moves by "
            f"{self.change:.3g}, allowed is {self.allowed:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "independent": self.independent}


def measure_independence(
    answer: Answer, rows: Mapping[str, np.ndarray], allowed: Mapping[str, float], sizes: tuple[int, ...] = BATCH_SIZES
) -> Independence:
    """Ask `rows` alone and in company, and return the worst of it.

    Args:
        answer: takes a batch, gives each output with as many rows.
        rows: real rows, at least one; `ROWS_MAX` of them are taken, evenly spread.
        allowed: largest change by output (`allowed_changes`); outputs that are no floats must stay equal.
    """
    some = _spread(rows)
    count = min(PROBES, len(next(iter(some.values()))))
    probes = {name: array[:count] for name, array in some.items()}
    alone = [answer({name: array[i : i + 1] for name, array in probes.items()}) for i in range(count)]
    worst: Independence | None = None
    rng = np.random.default_rng(0)
    for size in sizes:
        for company, strangers in _companies(some, size, rng):
            members = rng.permutation(count)[: max(1, size // 2)]
            order = rng.permutation(len(members) + len(next(iter(strangers.values()))))
            batch = {
                name: np.ascontiguousarray(np.concatenate([probes[name][members], strangers[name]])[order])
                for name in probes
            }
            places = np.argsort(order)[: len(members)]
            got = answer(batch)
            for output, array in got.items():
                want = np.concatenate([alone[i][output] for i in members])
                change = _change(want, array[places])
                found = Independence(output, change, allowed.get(output, 0.0), len(order), company)
                worst = found if worst is None or _excess(found) > _excess(worst) else worst
    assert worst is not None, "there is a size and an output"
    return worst


def allowed_changes(outputs: Mapping[str, np.ndarray], precision: str = "fp32") -> dict[str, float]:
    """How far an answer may move, by output: from the float graph's answers to many rows, and a number format."""
    found = {}
    for name, array in outputs.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        values = np.where(np.isfinite(array), array, 0.0).reshape(len(array), -1).astype(np.float64)
        spread, peak = float(values.std(axis=0).max()), float(np.abs(values).max())
        found[name] = SPREAD_SHARE * spread + ROUNDINGS * EPSILON[precision] * peak
    return found


def _companies(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[tuple[str, Rows]]:
    """Strangers that fill a batch of `size` up, in three kinds."""
    have = len(next(iter(rows.values())))
    num = size - max(1, min(size // 2, PROBES, have))
    drawn = rng.integers(0, have, num)
    others = {name: array[drawn] for name, array in rows.items()}
    yield "other rows", others
    yield "outliers", {name: _outliers(array, others[name], rng) for name, array in rows.items()}
    yield "padding", {name: np.full_like(array, b"" if array.dtype == object else 0) for name, array in others.items()}


def _outliers(seen: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Extreme rows: floats beyond all that was seen, whole numbers and texts within it (an id must stay one)."""
    if seen.dtype.kind == "f":
        peak = np.abs(np.where(np.isfinite(seen), seen, 0)).max(initial=0) or 1.0
        most = float(np.finfo(seen.dtype).max) / 4
        signs = rng.choice([-1.0, 1.0], drawn.shape)
        return np.clip(signs * min(OUTLIER * float(peak), most), -most, most).astype(seen.dtype)
    flat = seen.reshape(-1)
    if seen.dtype.kind in "biu":
        extremes = np.array([flat.min(), flat.max()], seen.dtype)
        rows = rng.integers(0, 2, (len(drawn), *([1] * (drawn.ndim - 1))))
        return np.broadcast_to(extremes[rows], drawn.shape).copy()
    return rng.choice(flat, drawn.shape)


def _spread(rows: Mapping[str, np.ndarray]) -> Rows:
    have = len(next(iter(rows.values())))
    chosen = np.linspace(0, have - 1, min(have, ROWS_MAX)).astype(np.int64)
    return {name: np.asarray(array[chosen]) for name, array in rows.items()}


def _change(want: np.ndarray, got: np.ndarray) -> float:
    if want.dtype.kind != "f":
        return float(np.mean(want != got))
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(got.astype(np.float64) - want.astype(np.float64)))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def _excess(found: Independence) -> float:
    """The change as a multiple of what is allowed."""
    return found.change / found.allowed if found.allowed else (np.inf if found.change else 0.0)
