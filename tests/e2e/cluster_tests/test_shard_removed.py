"""A shard that is removed while `manta run` works: one sentence and exit code 2, and the same command mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import RunFailed, read_events
from tests.e2e.cluster_tests.head import wait_for
from tests.e2e.cluster_tests.test_faults import END_S, START_S, epochs, manta_run, run, train_workers

__all__ = ["run"]
pytestmark = pytest.mark.soak  # two real runs each: 150 s; tests/integration/train_tests/test_shard_gone.py is short


def shard(run: RunFolder) -> Path:
    return run.stage("prepare") / "train" / "inputs.image.npy"


@pytest.mark.parametrize("when", ["before training opens it", "in training, when a lost worker comes back"])
def test_a_removed_shard_is_named_and_the_same_command_makes_it_again(when: str, run: RunFolder) -> None:
    with manta_run(run, "--set", "train.epochs=2000") as process:
        wait_for(lambda: run.record("prepare") is not None, START_S, process)
        if "lost worker" in when:
            wait_for(lambda: len(epochs(run)) >= 2, START_S, process)
        shard(run).unlink()
        if "lost worker" in when:
            seen = len(epochs(run))
            wait_for(lambda: len(epochs(run)) > seen, START_S, process)  # what is open or read goes on
            train_workers(run)[0].kill()
        stdout, stderr = process.communicate(timeout=START_S)
    assert process.returncode == 2, stderr
    error = json.loads(stdout)["error"]
    assert (error["code"], "the shard is gone" in error["message"]) == ("DATA", True)
    assert str(shard(run)) in error["message"]
    assert "Traceback" not in stderr
    assert isinstance(read_events(run.events)[-1], RunFailed)
    assert not run.stage("train").exists()

    with manta_run(run, "--set", "train.epochs=2") as process:
        _, stderr = process.communicate(timeout=START_S + END_S)
    assert process.returncode == 0, stderr
    assert shard(run).exists()
