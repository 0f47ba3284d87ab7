"""Checkpoints of a training whose spec has changed: which folder, what is said, what goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster.spec.load import validate_spec
from cluster.store.run_folder import FORGOTTEN, RunFolder
from cluster.telemetry.events import ListSink
from trainers.launch.earlier import checkpoints_of, forget_others


def folder_for(run: Path, **train: Any) -> tuple[Path, list[str]]:
    """Of a training with these keys, and what is said about it."""
    raw = {"version": 1, "data": {"source": {"kind": "sklearn", "dataset": "digits"}}, "train": train}
    sink = ListSink()
    context: Any = SimpleNamespace(
        run_resolved=SimpleNamespace(spec=validate_spec(raw)),
        run=RunFolder(run),
        stage="train",
        events=sink,
        records={"prepare": SimpleNamespace(output_digest="rows")},
    )
    return checkpoints_of(context), [event.text for event in sink.events]


def trained(folder: Path, epochs: int, window: int = 0) -> None:
    (folder / f"e{epochs:05d}-w{window:08d}").mkdir()


def test_more_epochs_go_on_and_another_rate_starts_anew(tmp_path: Path) -> None:
    first, said = folder_for(tmp_path, epochs=3)
    assert said == []
    trained(first, 2, 7)
    assert folder_for(tmp_path, epochs=3) == (first, [])
    longer, said = folder_for(tmp_path, epochs=5, workers=2, log_every_updates=1)
    assert longer == first
    assert [text.partition(":")[0] for text in said] == [
        "training goes on with train.epochs 3 -> 5",
        "training goes on with train.workers auto -> 2",
    ]
    other, said = folder_for(tmp_path, epochs=5, workers=2, clip_norm=0.5)
    assert other != first
    assert len(said) == 1
    assert "starts anew" in said[0]
    assert "train.clip_norm (1.0 -> 0.5)" in said[0]
    assert "2 epochs long" in said[0]
    assert folder_for(tmp_path, epochs=5, workers=2)[0] == first, "with the old value it goes on"


def test_fewer_epochs_than_are_trained_are_another_training(tmp_path: Path) -> None:
    first, _ = folder_for(tmp_path, epochs=5)
    trained(first, 4)
    assert folder_for(tmp_path, epochs=4)[0] == first
    shorter, said = folder_for(tmp_path, epochs=3)
    assert shorter != first
    assert "train.epochs (4 -> 3)" in said[0]
    assert folder_for(tmp_path, epochs=5)[0] == first


def test_the_earlier_state_stays_until_the_new_one_has_an_epoch(tmp_path: Path) -> None:
    first, _ = folder_for(tmp_path)
    trained(first, 2)
    foreign = first.with_name("of an older version")
    foreign.mkdir()
    second, _ = folder_for(tmp_path, clip_norm=0.5)
    trained(second, 0, 9)
    forget_others(second)
    assert first.exists()
    trained(second, 1)
    forget_others(second)
    assert not first.exists()
    assert foreign.exists()


def test_after_fresh_the_earlier_state_stays_until_the_new_one_has_an_epoch(tmp_path: Path) -> None:
    first, _ = folder_for(tmp_path, epochs=3)
    trained(first, 2)
    (first / FORGOTTEN).touch()
    new, said = folder_for(tmp_path, epochs=3)
    assert new != first
    assert len(said) == 1
    assert f"as --fresh says. The earlier one, 2 epochs long, stays in {first}" in said[0]
    forget_others(new)
    assert first.exists()
    (first / FORGOTTEN).unlink()
    assert folder_for(tmp_path, epochs=3)[0] == first, "without its mark it goes on"
    (first / FORGOTTEN).touch()
    trained(new, 1)
    assert folder_for(tmp_path, epochs=3) == (new, [])
    forget_others(new)
    assert not first.exists()
