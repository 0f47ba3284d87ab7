"""Whether a row's answer depends on its company, found by asking: what is caught, and what is rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cluster.bundle.independence import BATCH_SIZES, Rows, allowed_changes, measure_independence

WEIGHT = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
X = np.random.default_rng(2).standard_normal((40, 6)).astype(np.float32)


def logits(rows: Rows) -> np.ndarray:
    return np.einsum("nk,kc->nc", rows["x"], WEIGHT).astype(np.float32)  # the same order of sums for any batch


def whole_batch_range(rows: Rows) -> np.ndarray:
    scale = np.abs(rows["x"]).max() / 127
    return (np.rint(rows["x"] / scale) * scale @ WEIGHT).astype(np.float32)


def row_range(rows: Rows) -> np.ndarray:
    scale = np.maximum(np.abs(rows["x"]).max(axis=1, keepdims=True), 1e-30) / 127
    return np.einsum("nk,kc->nc", np.rint(rows["x"] / scale), WEIGHT).astype(np.float32) * scale


def minus_batch_mean(rows: Rows) -> np.ndarray:
    return logits(rows) - logits(rows).mean(axis=0)


def first_row_leaks(rows: Rows) -> np.ndarray:
    return logits(rows) + 1e-3 * logits(rows)[:1]


def padding_leaks(rows: Rows) -> np.ndarray:
    return logits(rows) + 1e-3 * (np.abs(rows["x"]).sum(axis=1) == 0).sum()


def size_leaks(rows: Rows) -> np.ndarray:
    return logits(rows) * (1 + 1e-3 * (len(rows["x"]) > 40))


def measure(function: Callable[[Rows], np.ndarray], x: np.ndarray = X, sizes: tuple[int, ...] = BATCH_SIZES) -> Any:
    allowed = allowed_changes({"y": logits({"x": X})})
    return measure_independence(lambda rows: {"y": function(rows)}, {"x": x}, allowed, sizes)


@pytest.mark.parametrize("function", [logits, row_range])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_answers_of_single_rows_are_independent(function: Any, rows: int) -> None:
    found = measure(function, X[:rows])
    assert found.independent, found.sentence()
    assert found.change <= found.allowed


@pytest.mark.parametrize(
    ("function", "company"),
    [
        (whole_batch_range, "outliers"),
        (minus_batch_mean, "outliers"),
        (first_row_leaks, "outliers"),
        (padding_leaks, "padding"),
        (size_leaks, None),
    ],
)
def test_a_row_that_company_moves_is_found_and_told(function: Any, company: str | None) -> None:
    found = measure(function)
    assert not found.independent
    assert company is None or found.company == company
    assert f"a row's answer ('y') moves by {found.change:.3g}" in found.sentence()
    assert found.to_dict()["independent"] is False


def test_a_size_that_is_not_asked_is_not_found() -> None:
    assert measure(size_leaks, sizes=(2, 8)).independent
    assert measure(size_leaks, sizes=(64,)).rows == 64


def test_rounding_is_no_influence_but_a_hundred_times_more_is() -> None:
    def kernel(error: float) -> Callable[[Rows], np.ndarray]:
        return lambda rows: logits(rows) * np.float32(1 + error * (len(rows["x"]) > 1))

    assert measure(kernel(2e-7)).independent
    assert not measure(kernel(2e-5 * 4)).independent


def test_what_may_move_follows_the_spread_and_the_number_format() -> None:
    y = np.array([[0.0, 1000.0], [2.0, 1000.0]], np.float32)
    single, half = allowed_changes({"y": y})["y"], allowed_changes({"y": y}, "fp16")["y"]
    assert single == pytest.approx(1e-5 * 1.0 + 4 * 2.0**-23 * 1000)
    assert half == pytest.approx(1e-5 * 1.0 + 4 * 2.0**-10 * 1000)
    assert allowed_changes({"label": np.array(["a", "b"], object)}) == {}


def test_labels_must_stay_equal_and_ids_stay_within_what_was_seen() -> None:
    seen: list[np.ndarray] = []

    def label(rows: Rows) -> dict[str, np.ndarray]:
        seen.append(rows["ids"])
        assert {b"a", b"b", b""} >= set(rows["text"].reshape(-1).tolist())
        sums = rows["ids"].sum(axis=1)
        return {"label": np.where(sums > sums.mean(), b"big", b"small").astype(object)}

    ids = np.random.default_rng(0).integers(1, 9, (20, 4))
    text = np.array([[b"a"], [b"b"]] * 10, object)
    found = measure_independence(label, {"ids": ids, "text": text}, {})
    assert not found.independent
    assert found.allowed == 0
    assert np.concatenate(seen).min() == 0  # padding
    assert np.concatenate(seen).max() == ids.max()


def test_an_answer_that_turns_to_nan_in_company_is_an_influence() -> None:
    def spoiled(rows: Rows) -> np.ndarray:
        return logits(rows) * (np.nan if np.abs(rows["x"]).max() > 100 else 1.0)

    found = measure(spoiled)
    assert not found.independent
    assert found.change == np.inf
