"""A run whose spec changes between two commands: real stages, a real training process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.pipeline.driver import DriveOptions, run_driver
from cluster.store.fence import Fence
from cluster.store.run_folder import RunFolder
from cluster.telemetry.current import current_records
from cluster.telemetry.events import EpochFinished, Message, read_events

TRAIN = {"epochs": 2, "optimizer": {"learning_rate": 0.01}, "workers": 1}


def test_a_changed_spec_goes_on_or_starts_anew_and_says_so(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    assert trained(run, TRAIN)[0] == [1, 2]
    assert trained(run, {**TRAIN, "log_every_updates": 1})[0] == [], "the record is used again"
    epochs, said = trained(run, {**TRAIN, "epochs": 3})
    assert epochs == [3]
    assert any("training goes on with train.epochs 2 -> 3" in text for text in said)
    curve = [event.epoch for event in current_records(read_events(run.events)) if isinstance(event, EpochFinished)]
    assert curve == [1, 2, 3], "one curve"
    epochs, said = trained(run, {**TRAIN, "optimizer": {"learning_rate": 0.02}})
    assert epochs == [1, 2]
    assert any("starts anew" in text and "train.optimizer.learning_rate (0.01 -> 0.02)" in text for text in said)
    assert len(list(run.checkpoints.iterdir())) == 1, "the earlier state has gone"


def trained(run: RunFolder, train: dict[str, Any]) -> tuple[list[int], list[str]]:
    """Epochs that were trained, and what was said, by one more `manta train`."""
    data = {"source": {"kind": "sklearn", "dataset": "iris"}}
    raw = {"version": 1, "data": data, "model": {"family": "mlp", "hidden": [4]}, "train": train, "serve": None}
    (run.path / "spec.yaml").write_text(yaml.safe_dump(raw))
    before = len(read_events(run.events)) if run.events.exists() else 0
    assert run_driver(run, DriveOptions(until="train"), Fence.draw(run), wait=lambda: None) == 0
    events = read_events(run.events)[before:]
    epochs = [event.epoch for event in events if isinstance(event, EpochFinished)]
    return epochs, [event.text for event in events if isinstance(event, Message)]
