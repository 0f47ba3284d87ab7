"""Delimited text as it is in the world: decimal commas; the same in memory, past memory and at serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.bundle.transforms import Column, load_transforms
from cluster.errors import DataError, SpecError
from tests.unit.data_tests.making import prepare, run_spec
from trainers.data.read.sources import read_source
from trainers.data.shards import open_prepared

SPLIT = {"by_hash": True, "validation": 0.2, "calibration": 0, "gate": 0, "test": 0.2}


def prepared(folder: Path, source: dict[str, Any], *, past: bool, **values: Any) -> Any:
    """The prepared data set of a source, in memory or past it."""
    spec = run_spec(source, **{"split": SPLIT, "memory_bytes": 1 if past else None, **values})
    prepare(folder, spec)
    return open_prepared(folder)


def both_ways(folder: Path, source: dict[str, Any], **values: Any) -> Any:
    """Prepared in memory, once that is known to be what is prepared past it."""
    here = prepared(folder / "here", source, past=False, **values)
    there = prepared(folder / "there", source, past=True, **values)
    assert (folder / "here" / "transforms.json").read_bytes() == (folder / "there" / "transforms.json").read_bytes()
    for name, split in here.splits.items():
        assert np.array_equal(split.inputs["features"], there.splits[name].inputs["features"])
        assert np.array_equal(split.targets, there.splits[name].targets)
    return here


def number(value: float, thousands: str = "") -> str:
    """As a German spreadsheet writes it."""
    return f"{value:,.2f}".replace(",", "\0").replace(".", ",").replace("\0", thousands)


@pytest.mark.parametrize("thousands", ["", "."])
def test_decimal_commas_are_numbers_in_features_target_and_raw_rows(thousands: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2_000, (300, 2)).round(2)
    lines = [f"{number(a, thousands)};{number(b, thousands)};{number(a - b, thousands)}" for a, b in values]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a;b;y", *lines]) + "\n")
    source = {"kind": "csv", "path": str(path), "delimiter": ";", "decimal": ",", "thousands": thousands}
    raw = read_source(run_spec(source, target="y").data)
    assert raw.table is not None
    assert np.allclose(raw.table.values["a"], values[:, 0], atol=0)
    assert np.allclose(raw.targets, values[:, 0] - values[:, 1], atol=1e-9)
    data = both_ways(tmp_path, source, target="y", encode={"number": "standard"})
    assert data.task == "regression"
    transforms = load_transforms(json.loads((tmp_path / "here" / "transforms.json").read_text()))
    words = [{"a": number(a, thousands), "b": number(b, thousands)} for a, b in values]
    floats = [{"a": float(a), "b": float(b)} for a, b in values]
    served = transforms.apply_rows(words)["features"]
    assert np.array_equal(served, transforms.apply_rows(floats)["features"])
    kept = {row.tobytes() for split in data.splits.values() for row in split.inputs["features"]}
    assert all(row.tobytes() in kept for row in served)


@pytest.mark.parametrize(
    ("word", "thousands", "value"),
    [
        ("3,14", "", 3.14), ("-3,14", "", -3.14), ("7", "", 7.0), (",5", "", 0.5), ("1e3", "", 1000.0),
        ("1.234,5", ".", 1234.5), ("-1.234.567", ".", -1234567.0), ("1 234,5", " ", 1234.5),
        ("3.14", "", None), ("3.14", ".", None), ("1.23,4", ".", None), ("3,1,4", "", None), ("3,1.4", ".", None),
        ("1.2345", ".", None), (".123", ".", None), ("", "", None), ("abc", ".", None),
    ],
)  # fmt: skip
def test_a_decimal_comma_reads_one_number_or_none(word: str, thousands: str, value: float | None) -> None:
    """ "3.14" in such a column is no 314 and no 3.14: it is refused."""
    column = Column(name="x", kind="number", decimal=",", thousands=thousands, missing=())
    if value is None:
        with pytest.raises(DataError, match="the column holds numbers"):
            column.parse_number(word, 0)
    else:
        assert column.parse_number(word, 0) == value


def test_one_mark_cannot_be_both(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="thousands and decimal are both ','"):
        run_spec({"kind": "csv", "path": "t.csv", "decimal": ",", "thousands": ","})
