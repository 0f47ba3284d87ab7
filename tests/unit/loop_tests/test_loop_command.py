"""`python -m trainers.loop RUN`: training a prepared run without Ray; layout knobs; where time goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cluster.cli import run_process, runs
from cluster.spec import load_spec, parse_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import ListSink, TrainStep, read_events
from tests.unit.loop_tests.rig import request_for, start, write_data
from trainers.loop import fit
from trainers.loop.__main__ import main
from trainers.loop.data.sampler import epoch_order, window_of
from trainers.loop.state import State
from trainers.loop.step import update

TEXT = """
version: 1
data: {source: {kind: sklearn, dataset: digits}}
model: {family: mlp, hidden: [8]}
train: {epochs: 2, batch_size_global: 8, workers: 1, precision: fp32}
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    write_data(run.stage("prepare"), 64, dtype="FP32")
    facts = DataFacts(
        task="classification", layout="array", num_rows=64, num_rows_train=64, num_classes=3, source_digest="0"
    )
    host = HostFacts(cpu_cores=2, memory_bytes=1 << 30)
    run.write_resolved(resolve(parse_spec(TEXT), name="run", host=host, data=facts))
    return run


def test_a_prepared_run_trains_without_ray(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(run.path), "--out", str(out), "--set", "train.epochs=3", "--profile", "2"]) == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed["updates"] == 24
    assert {path.name for path in out.iterdir()} >= {
        "weights.safetensors",
        "history.json",
        "checkpoints",
        "trace-0.json",
    }
    assert json.loads((out / "trace-0.json").read_text())["traceEvents"]
    shares = [
        event.extra["data_wait_share"] for event in read_events(out / "events.jsonl") if isinstance(event, TrainStep)
    ]
    assert shares
    assert all(0 <= share <= 1 for share in shares)


def test_profile_of_manta_train_is_a_value_of_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced is a training: `--profile` asks for one, also where the run has been trained without."""
    (tmp_path / "digits.yaml").write_text(TEXT)
    monkeypatch.setattr(run_process, "start_driver", lambda folder, flags: flags)
    monkeypatch.setattr(run_process, "watch", lambda folder, flags, options: folder.path)
    for number in (3, None):
        folder = runs.train(tmp_path / "digits.yaml", None, runs_dir=tmp_path / "runs", profile=number)
        assert load_spec(Path(folder) / "spec.yaml").train.profile_updates == number


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["train.batch_size_per_worker=auto", "train.epochs=1"], 0, '"updates": 8'),
        (["train.best.metric=validation.auc"], 2, "train.best.metric"),
        (["train.batch_size_global=0"], 2, "train.batch_size_global"),
        (["train.optimizer.lr=1"], 2, "unknown key"),
    ],
    ids=["auto", "metric", "batch", "key"],
)
def test_an_auto_is_found_and_a_wrong_override_is_one_sentence(
    overrides: list[str], code: int, words: str, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for override in overrides for word in ("--set", override)]
    assert main([str(run.path), "--out", str(tmp_path / "out"), *sets]) == code
    captured = capsys.readouterr()
    assert words in (captured.out if code == 0 else captured.err)
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("what", ["batch", "lr"])
def test_probes_print_their_report(
    what: str, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.path), "--out", str(tmp_path / "out"), "--find", what]) == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert report["rows"] <= 8 if what == "batch" else report["suggestion"] > 0


def test_channels_last_trains_the_same_weights(tmp_path: Path) -> None:
    """Fused optimizers walk in memory order: a gradient in another order than its weight would train nonsense."""
    prepared = write_data(tmp_path, 32, dtype="FP32", image=True)
    ends: list[State] = []
    for channels_last in (False, True):
        request = request_for(prepared, batch=8, micro=4, factory=f"{HERE}:build_conv", channels_last=channels_last)
        job, state = start(request)
        order = epoch_order(7, 0, 32)
        for index in range(4):
            update(job, state, window_of(order, 0, index, 8, job.world))
        ends.append(state)
    weight = ends[1].exchange.parameters[0]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()
    for one, other in zip(ends[0].exchange.parameters, ends[1].exchange.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


HERE = "tests.unit.loop_tests.test_loop_command"


def build_conv() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )


def test_a_split_larger_than_memory_is_read_ahead_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = write_data(tmp_path, 40)
    request = request_for(prepared, batch=8, micro=4, epochs=2)
    in_memory = fit(request, sink=ListSink(), device=torch.device("cpu"))
    monkeypatch.setattr("trainers.loop.data.loader.IN_MEMORY_BYTES", 0)
    job, _ = start(request)
    assert not job.train.in_memory
    mapped = fit(request, sink=ListSink(), device=torch.device("cpu"))
    assert all(torch.equal(in_memory.weights[name], mapped.weights[name]) for name in mapped.weights)
