"""Elastic workers on a real cluster whose nodes come and go: nothing of the training may change by it.

The judge is one process with one big batch in float64: equal parameters after 400 updates prove that every row was
in every epoch once, in the right global batch, at the right learning rate.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.telemetry.events import CheckpointWritten, ListSink, Message, TrainStep, read_events
from tests.e2e.cluster_tests.head import clean_environment, wait_for
from tests.integration.train_tests.elastic_drive import elastic_request
from tests.unit.loop_tests.rig import write_data
from trainers.launch.fit import launch_fit
from trainers.loop import fit


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_notice_new_node_and_killed_node_change_workers_but_nothing_of_the_training(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 45, ignore_every=7)
    command = [sys.executable, "-m", "tests.integration.train_tests.elastic_drive", str(tmp_path)]
    environment = {**clean_environment(), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    events = read_events(tmp_path / "events.jsonl")
    said = [event.text for event in events if isinstance(event, Message)]
    assert done.returncode == 0, (done.stderr[-4000:], said)
    order = [
        "a node will be taken away",
        "with 2 of 4",
        "room for more",
        "with 4 of 4",
        "restart 1 of 1",
        "with 2 of 4",
    ]
    found = [next((word for word in order if word in text), "") for text in said]
    assert [word for word in found if word] == order, said

    (tmp_path / "free").touch()
    sink = ListSink()
    whole = fit(elastic_request(tmp_path, workers=1, micro=12, checkpoints=None), sink=sink, device=torch.device("cpu"))
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-10, atol=1e-10)
    expected = {event.update: event for event in sink.events if isinstance(event, TrainStep)}
    steps = [event for event in events if isinstance(event, TrainStep)]
    assert {event.update for event in steps} == set(expected), "the index goes on without a gap"
    for event in steps:
        assert event.learning_rate == expected[event.update].learning_rate
        assert event.loss == pytest.approx(expected[event.update].loss, rel=1e-9)

    at = json.loads((tmp_path / "facts.json").read_text())["steps_at_notice"]
    first = next(event for event in events if isinstance(event, CheckpointWritten))
    assert at <= first.update <= at + 12, "at once: within the look of a second and an update, not at an epoch's end"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["history.json", "weights.safetensors"]


@pytest.mark.soak  # 40 s; one process answers the notice in unit/loop_tests
def test_ctrl_c_writes_a_checkpoint_at_once_and_the_same_call_goes_on(ray_local: str, tmp_path: Path) -> None:
    """The epoch has not ended, and no interval is set: only the notice can have written it."""
    write_data(tmp_path / "data", 480)
    request = elastic_request(tmp_path, workers=2, micro=6, epochs=1)
    events = tmp_path / "events.jsonl"
    events.touch()
    main = threading.get_ident()

    def press() -> None:
        wait_for(lambda: steps_of(events) >= 3, 200)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        launch_fit(request, events=events, folder=tmp_path / "out")
    seen = steps_of(events)
    written = [event for event in read_events(events) if isinstance(event, CheckpointWritten)]
    assert len(written) == 1
    assert 3 <= written[0].update == seen < 40
    (tmp_path / "free").touch()
    resumed = launch_fit(request, events=events, folder=tmp_path / "out")
    whole = fit(replace(request, checkpoints=None), sink=ListSink(), device=torch.device("cpu"))
    assert steps_of(events) == 40, "no update was made twice"
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], tensor, rtol=1e-10, atol=1e-10)


def steps_of(events: Path) -> int:
    return sum(isinstance(event, TrainStep) for event in read_events(events))
