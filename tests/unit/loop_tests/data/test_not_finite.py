"""Rows that hold NaN or infinity: told before the first update, or by the windows that they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import trainers.loop.data.loader as loader
from cluster.bundle.signature import TensorSpec
from cluster.errors import DataError, DivergedError
from cluster.telemetry.events import ListSink, Message, UpdateSkipped
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for
from trainers.data.shards import Split, write_prepared
from trainers.loop import fit

CPU = torch.device("cpu")


def write(folder: Path, split: str, value: float, rows: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 48), ("validation", 16)):
        inputs = rng.normal(size=(count, FEATURES)).astype(np.float32)
        targets = inputs[:, :CLASSES].argmax(axis=1).astype(np.int64)
        if name == split:
            inputs[list(rows), 2] = value
        splits[name] = Split({"x": inputs}, targets)
    inputs_of = (TensorSpec(name="x", datatype="FP32", shape=(-1, FEATURES)),)
    write_prepared(folder, splits, task="classification", classes=tuple("abc"), inputs=inputs_of)
    return folder


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")], ids=str)
def test_a_split_in_memory_is_refused_with_its_rows(tmp_path: Path, split: str, value: float) -> None:
    request = request_for(write(tmp_path, split, value, (3, 11)), batch=8, micro=8, arguments={"double": False})
    with pytest.raises(DataError, match=rf"2 rows of the {split} split with NaN or infinity \(counted from 0: 3, 11\)"):
        fit(request, sink=ListSink(), device=CPU)


def test_a_larger_split_names_its_rows_when_their_window_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)
    prepared, sink = write(tmp_path / "one", "train", float("nan"), (3,)), ListSink()
    request = request_for(prepared, batch=8, micro=8, arguments={"double": False}, epochs=2)
    assert fit(request, sink=sink, device=CPU).skipped_updates == 2
    told = [event for event in sink.events if isinstance(event, UpdateSkipped)]
    assert [(event.epoch, event.rows, event.num_rows) for event in told] == [(1, [3], 1), (2, [3], 1)]
    all_bad = write(tmp_path / "all", "train", float("nan"), tuple(range(48)))
    request = request_for(all_bad, batch=8, micro=8, arguments={"double": False})
    with pytest.raises(DivergedError, match=r"rows .* of the train split hold NaN or infinity") as caught:
        fit(request, sink=ListSink(), device=CPU)
    assert caught.value.remedy == "Mend or drop these rows in the source."


def test_a_validation_that_is_not_finite_is_said_in_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "IN_MEMORY_BYTES", 0)
    sink, prepared = ListSink(), write(tmp_path, "validation", float("nan"), (3,))
    with pytest.raises(DivergedError, match="never finite in 3 epochs"):
        fit(request_for(prepared, batch=8, micro=8, arguments={"double": False}, epochs=3), sink=sink, device=CPU)
    said = [
        event.text for event in sink.events if isinstance(event, Message) and "validation.loss is nan" in event.text
    ]
    assert said == ["validation.loss is nan after epoch 1: such an epoch is never the best"]
