"""Each diagnosis by a real short training that has the illness and one that has not; its remedy is a valid spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.cli.app import call
from cluster.spec import load_spec, parse_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import FileSink
from tests.unit.loop_tests.rig import request_for
from trainers.data.shards import Split, write_prepared
from trainers.diagnose.__main__ import findings_of_run, main
from trainers.loop import fit

HERE = "tests.unit.diagnose_tests.test_diagnose_trained"
FEATURES, WIDE = 10, 60_000  # 32 rows of the wide ones are 7.7 MB, of which the network uses 1 KB
TEXT = "version: 1\ndata: {{source: {{kind: sklearn, dataset: digits}}}}\nmodel: {{family: mlp}}\ntrain: {train}\n"
HOST = HostFacts(cpu_cores=2, memory_bytes=1 << 30)
FACTS = DataFacts(
    task="classification", layout="array", num_rows=99, num_rows_train=64, num_classes=2, source_digest="0"
)


class Net(nn.Module):
    """Two layers over the first features; `dead` of its 32 units never fire."""

    def __init__(self, dead: int = 0) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 2)
        with torch.no_grad():
            self.first.bias[:dead] = -1000.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(inputs[:, :FEATURES])))


def build(dead: int = 0) -> nn.Module:
    return Net(dead)


def write(folder: Path, rows: int, *, noise: float, features: int = FEATURES) -> Path:
    """Two classes by the sign of a sum; `noise` of the training labels are drawn by lot."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", rows), ("validation", 200 if features == FEATURES else 20)):
        values = rng.normal(size=(count, FEATURES)).astype(np.float32)
        targets = (values.sum(axis=1) > 0).astype(np.int64)
        drawn = rng.random(count) < noise
        targets[drawn] = rng.integers(0, 2, int(drawn.sum()))
        padded = np.zeros((count, features), np.float32)
        padded[:, :FEATURES] = values
        splits[name] = Split({"x": padded}, targets)
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, features)),)
    write_prepared(folder, splits, task="classification", classes=("a", "b"), inputs=inputs)
    return folder


def trained(folder: Path, prepared: Path, *, dead: int = 0, batch: int = 32, **train: Any) -> RunFolder:
    """A run folder with the events of a real training."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    train = {"diagnostics_every_updates": 4, "log_every_updates": 2, "schedule": {"name": "constant"}, **train}
    text = TEXT.format(train=json.dumps(train))
    (run.path / "spec.yaml").write_text(text)
    run.write_resolved(resolve(parse_spec(text), name="run", host=HOST, data=FACTS))
    arguments = {"factory": f"{HERE}:build", "arguments": {"dead": dead}, "clip_norm": None, **train}
    request = request_for(prepared, batch=batch, micro=batch, **arguments)
    fit(request, sink=FileSink(run.events), device=torch.device("cpu"))
    return run


def rate(value: float) -> dict[str, Any]:
    return {"learning_rate": value, "weight_decay": 0.0}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "overfitting": (
        {"rows": 64, "noise": 1.0, "epochs": 60, "optimizer": rate(0.01)},
        {"rows": 512, "noise": 0.0, "epochs": 10, "optimizer": rate(0.01)},
    ),
    "underfitting": (
        {"rows": 256, "noise": 0.0, "epochs": 6, "optimizer": rate(2e-3)},
        {"rows": 256, "noise": 0.5, "epochs": 30, "optimizer": rate(5e-3), "schedule": {"name": "cosine"}},
    ),
    "learning_rate_high": (
        {"rows": 256, "noise": 0.0, "epochs": 6, "optimizer": rate(0.5)},
        {"rows": 256, "noise": 0.0, "epochs": 6, "optimizer": rate(2e-3)},
    ),
    "learning_rate_low": (
        {"rows": 256, "noise": 0.0, "epochs": 6, "optimizer": rate(1e-7)},
        {"rows": 256, "noise": 0.0, "epochs": 6, "optimizer": rate(2e-3)},
    ),
    "dead_units": (
        {"rows": 256, "noise": 0.0, "epochs": 6, "optimizer": rate(2e-3), "dead": 20},
        {"rows": 256, "noise": 0.0, "epochs": 6, "optimizer": rate(2e-3)},
    ),
    "data_bound": (
        {"rows": 128, "noise": 0.0, "epochs": 3, "optimizer": rate(2e-3), "features": WIDE},
        {"rows": 256, "noise": 0.0, "epochs": 3, "optimizer": rate(2e-3)},
    ),
}


def run_case(folder: Path, case: dict[str, Any]) -> RunFolder:
    case = dict(case)
    data = {name: case.pop(name) for name in ("rows", "noise", "features") if name in case}
    return trained(folder, write(folder / "data", **data), **case)


@pytest.mark.parametrize("code", sorted(CASES))
def test_a_training_that_has_it_is_told_and_its_remedy_is_a_valid_spec(
    code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_case(tmp_path, CASES[code][0])
    found = {finding.code: finding for finding in findings_of_run(run)}
    assert code in found, found
    assert found[code].evidence
    target = tmp_path / "new.yaml"
    assert main([str(run.path), "--apply", str(target)]) == 0
    assert found[code].text in capsys.readouterr().out
    assert call(["check", str(target)]) == 0, "manta check takes the spec with the remedies"
    before, after = load_spec(run.path / "spec.yaml"), load_spec(target)
    changed = any(finding.change for finding in found.values())
    assert (before != after) == changed


@pytest.mark.parametrize("code", sorted(CASES))
def test_its_like_without_the_illness_is_not_told_so(code: str, tmp_path: Path) -> None:
    run = run_case(tmp_path, CASES[code][1])
    assert code not in [finding.code for finding in findings_of_run(run)]


def test_the_verb_says_it_of_a_run_by_name_and_writes_the_spec(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_case(tmp_path, CASES["learning_rate_high"][0])
    target = tmp_path / "new.yaml"
    assert call(["diagnose", "run", "--runs-dir", str(tmp_path), "--apply", str(target), "--json"]) == 0
    assert "learning_rate_high" in [finding["code"] for finding in json.loads(capfd.readouterr().out)]
    assert load_spec(target).train.optimizer.learning_rate < 0.5
    assert call(["diagnose", "nothing", "--runs-dir", str(tmp_path)]) == 2
