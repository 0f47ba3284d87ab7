"""A real run with a real MLflow server on SQLite and with W&B offline: everything arrives once, and failures end soon.

The packages are an extra: they live in an environment of their own (tests/extras.py), where the run runs too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cluster.spec import parse_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EpochFinished, Message, StageStarted, TrainStep, read_events
from tests.unit.loop_tests.rig import request_for, write_data
from trainers.loop import fit

pytestmark = pytest.mark.slow
PACKAGES = ("mlflow==3.17.2", "wandb==0.31.0")
ROOT = Path(__file__).resolve().parents[3]
UP_DEADLINE_S = 240.0  # seconds on an idle machine
SPEC = """
version: 1
data: {source: {kind: sklearn, dataset: digits}}
model: {family: mlp, hidden: [8]}
train: {epochs: 2, batch_size_global: 128, workers: 1, log_every_updates: 2}
compress: null
serve: null
"""
READ_OFFLINE = """
import sys, json, struct
from wandb.proto import wandb_internal_pb2
data, at, piece, rows = open(sys.argv[1], "rb").read(), 7, b"", []  # a header of 7 bytes, then LevelDB's log format
while at < len(data):
    if 32768 - at % 32768 < 7:  # the rest of a block is too short for a record
        at += 32768 - at % 32768
        continue
    _, size, kind = struct.unpack("<IHB", data[at : at + 7])
    piece, at = piece + data[at + 7 : at + 7 + size], at + 7 + size
    if kind in (1, 4):  # whole, or the last piece
        record = wandb_internal_pb2.Record()
        record.ParseFromString(piece)
        piece = b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    from tests.extras import python_with

    return python_with("trackers", *PACKAGES)


@pytest.fixture(scope="module")
def server(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for all tests, each of which has an experiment of its own."""
    port, tmp_path = free_port(), tmp_path_factory.mktemp("mlflow")
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [str(python), "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"]
    command += ["--default-artifact-root", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + UP_DEADLINE_S
        while not _answers(url):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, "the MLflow server did not come up"
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1.0).status_code == 200
    except httpx.HTTPError:
        return False


def manta(python: Path, folder: Path, tracking: dict[str, Any]) -> RunFolder:
    """`manta run` until the evaluation, in the extra's environment."""
    (folder / "run.yaml").write_text(SPEC)
    command = [
        str(python),
        "-c",
        "from cluster.cli import main; main()",
        "run",
        str(folder / "run.yaml"),
        "--runs-dir",
        str(folder / "runs"),
    ]
    command += ["--until", "evaluate", "--set", f"tracking={json.dumps(tracking)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(folder / "runs" / "run")


def warnings(run: RunFolder) -> list[str]:
    return [e.text for e in read_events(run.events) if isinstance(e, Message) and "trackers" in e.text]


def mlflow_history(url: str, name: str) -> tuple[dict[str, Any], dict[str, list[tuple[int, float]]]]:
    """(the only run, metric -> points), read back through the server's own API."""
    api = f"{url}/api/2.0/mlflow"
    found = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": name}).json()
    experiment = found["experiment"]["experiment_id"]
    runs = httpx.post(f"{api}/runs/search", json={"experiment_ids": [experiment]}).json()["runs"]
    assert len(runs) == 1, "one MLflow run, however often it was sent"
    history = {}
    for metric in runs[0]["data"]["metrics"]:
        wanted = {"run_id": runs[0]["info"]["run_id"], "metric_key": metric["key"]}
        points = httpx.get(f"{api}/metrics/get-history", params=wanted).json()["metrics"]
        history[metric["key"]] = [(int(p.get("step", 0)), float(p["value"])) for p in points]
    return runs[0], history


def wandb_rows(python: Path, run: RunFolder) -> list[dict[str, Any]]:
    files = list(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1, "one W&B run, however often it was sent"
    done = subprocess.run([str(python), "-c", READ_OFFLINE, str(files[0])], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_run_arrives_whole_at_mlflow_and_wandb_and_once(python: Path, server: str, tmp_path: Path) -> None:
    tracking = {"tensorboard": False, "mlflow": {"uri": server, "experiment": "whole"}, "wandb": {"mode": "offline"}}
    run = manta(python, tmp_path, tracking)
    assert not warnings(run)
    steps = [event for event in read_events(run.events) if isinstance(event, TrainStep)]
    epochs = [event for event in read_events(run.events) if isinstance(event, EpochFinished)]
    facts = run.records()["evaluate"].facts["metrics"]
    for attempt in ("first", "again"):
        there, history = mlflow_history(server, "whole")
        assert history["train/loss"] == [(s.update, pytest.approx(s.loss)) for s in steps], attempt
        assert history["train/validation.accuracy"] == [
            (e.update, pytest.approx(e.metrics["validation.accuracy"])) for e in epochs
        ]
        assert history["evaluate/accuracy"] == [(epochs[-1].update, pytest.approx(facts["accuracy"]))]
        rows = wandb_rows(python, run)
        logged = [(row["update"], row["train/loss"]) for row in rows if "train/loss" in row]
        assert logged == [(s.update, pytest.approx(s.loss)) for s in steps], attempt
        if attempt == "first":
            manta(python, tmp_path, tracking)  # resumes: nothing trains, everything is sent again
    assert there["info"]["status"] == "FINISHED"
    assert there["info"]["run_name"] == "run"
    parameters = {item["key"]: item["value"] for item in there["data"]["params"]}
    assert parameters["train.batch_size_global"] == "128"


def test_sending_twice_adds_nothing_and_other_inputs_make_a_run_of_their_own(
    python: Path, server: str, tmp_path: Path
) -> None:
    """Of a training that was killed and resumed: its events hold updates twice."""
    run = trained_run(tmp_path, {"mlflow": {"uri": server, "experiment": "twice"}, "wandb": {"mode": "offline"}})
    steps = [event for event in read_events(run.events) if isinstance(event, TrainStep)]
    run.sink().emit(StageStarted(stage="train", digest="d"))
    run.sink().emit(steps[-1].model_copy(update={"time_s": time.time()}))
    for _ in range(2):
        send(python, run)
        _, history = mlflow_history(server, "twice")
        assert history["train/loss"] == [(s.update, pytest.approx(s.loss)) for s in steps]
        assert [row["update"] for row in wandb_rows(python, run) if "train/loss" in row] == [s.update for s in steps]
    run.sink().emit(StageStarted(stage="train", digest="other"))
    run.sink().emit(steps[0])
    send(python, run)
    with pytest.raises(AssertionError, match="one MLflow run"):
        mlflow_history(server, "twice")


def test_a_dead_or_silent_server_is_one_warning_within_the_deadline(python: Path, tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    run = trained_run(tmp_path, {"mlflow": {"uri": closed}, "timeout_s": 100.0})
    send(python, run)
    assert len(warnings(run)) == 1
    assert "mlflow: " in warnings(run)[0]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        run = trained_run(tmp_path / "silent", {"mlflow": {"uri": _url(silent)}, "timeout_s": 8.0})
        started = time.monotonic()
        send(python, run)
        assert time.monotonic() - started < 60.0
    assert len(warnings(run)) == 1
    assert "after 8 s" in warnings(run)[0]


def trained_run(folder: Path, tracking: dict[str, Any]) -> RunFolder:
    """A run folder with the records of a real training, as its train stage leaves them."""
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    text = SPEC + f"tracking: {json.dumps(tracking)}\n"
    (run.path / "spec.yaml").write_text(text)
    facts = DataFacts(task="classification", layout="array", num_rows=64, num_rows_train=64, source_digest="0")
    run.write_resolved(resolve(parse_spec(text), name="run", host=HostFacts(cpu_cores=1, memory_bytes=1), data=facts))
    run.sink().emit(StageStarted(stage="train", digest="d"))
    request = request_for(write_data(folder / "data", 64), batch=8, micro=8, epochs=2, log_every_updates=2)
    fit(request, sink=run.sink(), device=torch.device("cpu"))
    return run


def send(python: Path, run: RunFolder) -> None:
    """As the driver does it, in the extra's environment."""
    code = "import sys; from pathlib import Path; from cluster.store.run_folder import RunFolder; "
    code += "from cluster.pipeline.trackers import send_to_trackers; run = RunFolder(Path(sys.argv[1])); "
    code += "send_to_trackers(run, run.read_resolved().spec.tracking, 'finished')"
    subprocess.run([str(python), "-c", code, str(run.path)], cwd=ROOT, check=True, timeout=200)


def _url(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"
