"""A real run with a real MLflow server on SQLite and with W&B offline: everything arrives once, and failures end soon.

The packages are an extra: they live in an environment of their own (tests/extras.py), where the run runs too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EpochFinished, Message, TrainStep, read_events

pytestmark = pytest.mark.slow
PACKAGES = ("mlflow==3.17.2", "wandb==0.31.0")
ROOT = Path(__file__).resolve().parents[3]
UP_DEADLINE_S = 120.0
SPEC = """
version: 1
data: {source: {kind: sklearn, dataset: digits}}
model: {family: mlp, hidden: [8]}
train: {epochs: 2, batch_size_global: 128, workers: 1, log_every_updates: 2}
compress: null
serve: null
"""
READ_OFFLINE = """
import sys, json, glob
from wandb.sdk.internal.datastore import DataStore
from wandb.proto import wandb_internal_pb2
rows, store = [], DataStore()
store.open_for_scan(sys.argv[1])
while (data := store.scan_data()) is not None:
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    if record.WhichOneof("record_type") == "history":
        items = record.history.item
        rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    from tests.extras import python_with

    return python_with("trackers", *PACKAGES)


@pytest.fixture
def server(python: Path, tmp_path: Path) -> Iterator[str]:
    port = free_port()
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


def manta(python: Path, folder: Path, tracking: dict[str, Any], *more: str) -> tuple[RunFolder, float]:
    """`manta run` until the evaluation, in the extra's environment. Returns the run and its seconds."""
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
    command += ["--until", "evaluate", "--set", f"tracking={json.dumps(tracking)}", *more]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(folder / "runs" / "run"), time.monotonic() - started


def warnings(run: RunFolder) -> list[str]:
    return [e.text for e in read_events(run.events) if isinstance(e, Message) and "trackers" in e.text]


def mlflow_history(url: str) -> tuple[dict[str, Any], dict[str, list[tuple[int, float]]]]:
    """(the only run, metric -> points), read back through the server's own API."""
    api = f"{url}/api/2.0/mlflow"
    found = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": "manta"}).json()
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
    tracking = {"tensorboard": False, "mlflow": {"uri": server}, "wandb": {"mode": "offline"}}
    run, _ = manta(python, tmp_path, tracking)
    assert not warnings(run)
    steps = [event for event in read_events(run.events) if isinstance(event, TrainStep)]
    epochs = [event for event in read_events(run.events) if isinstance(event, EpochFinished)]
    facts = run.records()["evaluate"].facts["metrics"]
    for attempt in ("first", "again"):
        there, history = mlflow_history(server)
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
    _dead_servers_end_soon(python, tmp_path, run)


def _dead_servers_end_soon(python: Path, folder: Path, run: RunFolder) -> None:
    """The same run again: all stages are reused, so that its time is that of the trackers. One warning each time."""
    closed = f"http://127.0.0.1:{free_port()}"
    manta(python, folder, {"mlflow": {"uri": closed}, "timeout_s": 90.0})
    assert len(warnings(run)) == 1
    assert "mlflow" in warnings(run)[0]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        manta(python, folder, {"mlflow": {"uri": uri}, "timeout_s": 6.0})
    assert len(warnings(run)) == 2
    assert "after 6 s" in warnings(run)[1]
    shutil.rmtree(run.path)
