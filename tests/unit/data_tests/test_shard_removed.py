"""Shards that somebody removes or cuts while a job reads them: what is open goes on, what is opened anew says it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cluster.errors import DataError
from cluster.telemetry.events import EpochFinished, ListSink
from tests.unit.data_tests.making import prepare, run_spec
from tests.unit.loop_tests.rig import request_for
from trainers.data.shards import open_prepared
from trainers.loop import FitRequest, fit
from trainers.loop.data import loader as loader_module


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "prepared"
    prepare(folder, run_spec({"kind": "sklearn", "dataset": "digits"}))
    return folder


def request(folder: Path) -> FitRequest:
    net = "tests.unit.data_tests.test_shard_removed:build_net"
    return request_for(folder, batch=64, micro=64, factory=net, epochs=3)


def build_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "memory-mapped"])
def test_a_fit_goes_on_to_the_same_weights_when_its_shards_are_removed(
    in_memory: bool, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr(loader_module, "IN_MEMORY_BYTES", 0)
    folder = tmp_path / "prepared"
    shutil.copytree(digits, folder)
    gone: list[bool] = []

    def remove(_: EpochFinished) -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        gone.append(not folder.exists())
        return False

    disturbed = fit(request(folder), sink=ListSink(), on_epoch=remove)
    alone = fit(request(digits), sink=ListSink())
    assert gone == [True, True, True]
    for name, value in alone.weights.items():
        assert torch.equal(disturbed.weights[name], value), name


@pytest.mark.parametrize("shard", ["train/inputs.image.npy", "validation/targets.npy", "dataset.json"])
def test_a_job_that_opens_a_removed_shard_ends_with_its_name(shard: str, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    shutil.copytree(digits, folder)
    (folder / shard).unlink()
    with pytest.raises(DataError) as caught:
        fit(request(folder), sink=ListSink())
    assert Path(shard).name in caught.value.message
    assert str(folder) in caught.value.message
    assert caught.value.exit_code == 2
    with pytest.raises(DataError):
        open_prepared(folder)
