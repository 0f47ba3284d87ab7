"""What the verbs send and say: the cluster's shell line, states, and who may be signalled."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.atomic import write_json
from cluster.cli.app import call
from cluster.cli.cluster import entrypoint, job_row
from cluster.cli.local_runs import follow_log, status_rows, stop_run
from cluster.errors import RequestError
from cluster.runtime.jobs.client import Job
from cluster.store.run_folder import RunFolder

HOLDER = (
    "import sys, time; from pathlib import Path; from cluster.store.locks import hold_lock\n"
    "with hold_lock(Path(sys.argv[1])): print('up', flush=True); time.sleep(60)"
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "digits")
    folder.path.mkdir(parents=True)
    (folder.path / "spec.yaml").write_text("version: 1\n", encoding="utf-8")
    folder.log.write_text("one\ntwo\n", encoding="utf-8")
    return folder


def test_the_shell_line_quotes_what_comes_from_the_user() -> None:
    line = entrypoint("a b.yaml", ["train.epochs=3; rm -rf /"], "x", store="s3://b/c d", runs_dir=None)
    run, publish = line.split(" && ")
    assert shlex.split(run)[:4] == ["manta", "run", "a b.yaml", "--name"]
    assert "train.epochs=3; rm -rf /" in shlex.split(run), "an override is one word, whatever it holds"
    assert shlex.split(publish)[:5] == ["manta", "publish", "x", "--store", "s3://b/c d"]
    assert all(part.endswith('--runs-dir "${MANTA_RUNS_DIR:-$HOME/manta-runs}"') for part in (run, publish))
    assert entrypoint("s.yaml", [], "x", store=None, runs_dir="/my runs").endswith("--runs-dir '/my runs'")


def test_a_failed_job_says_why() -> None:
    row = job_row(Job("a", "FAILED", "Traceback…\nJob failed: exit code 3\n", exit_code=3, metadata={"manta.run": "x"}))
    assert (row["state"], row["note"], row["exit_code"], row["run"]) == ("failed", "Job failed: exit code 3", 3, "x")


def test_a_run_that_nobody_works_on_is_not_signalled(run: RunFolder) -> None:
    write_json(run.state, {"state": "serving", "pid": 1, "host": socket.gethostname()})
    assert stop_run(run) is False
    assert status_rows(run.path.parent, None)[0]["state"] == "cut short"


def test_a_run_of_another_host_is_not_signalled(run: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run.lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        write_json(run.state, {"state": "serving", "pid": holder.pid, "host": "elsewhere"})
        with pytest.raises(RequestError, match="runs on host elsewhere"):
            stop_run(run)
        assert holder.poll() is None
        write_json(run.state, {"state": "serving", "pid": holder.pid, "host": socket.gethostname()})
        assert stop_run(run) is True
        assert holder.wait() == -signal.SIGTERM


def test_the_log_of_a_run_that_has_ended_is_shown_once(run: RunFolder) -> None:
    shown: list[str] = []
    assert follow_log(run, shown.append, follow=True) == 0
    assert shown == ["one\ntwo\n"]


def test_verbs_without_an_address_speak_of_this_machine(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs-dir", str(run.path.parent)]
    assert call(["status", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "digits"
    assert call(["logs", "digits", *where]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert call(["stop", "digits", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] is False
    assert call(["stop", "nobody", *where]) == 2
    assert "Cannot find run 'nobody'" in capsys.readouterr().err


def test_submit_without_a_cluster_says_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n", encoding="utf-8")
    assert call(["submit", "s.yaml"]) == 2
    assert "--address http://HOST:8265" in capsys.readouterr().err
    assert call(["submit", "s.yaml", "--address", "10.0.0.5:6379"]) == 2
    assert "not a URL" in capsys.readouterr().err


def test_a_spec_outside_the_working_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "s.yaml").write_text("version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n", encoding="utf-8")
    words = ["submit", str(tmp_path / "s.yaml"), "--folder", str(tmp_path / "project"), "--address", "http://h:1"]
    assert call(words) == 2
    assert "outside the working folder" in capsys.readouterr().err


def test_probe_prints_data_and_says_why_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["probe", "--json"]) == 0
    (node,) = json.loads(capsys.readouterr().out)["nodes"]
    assert node["host"]["cpu_cores"] >= 1
    assert node["host"]["gpus"] or node["host"]["reasons"]["gpus"]
    assert call(["probe"]) == 0
    assert "cores" in capsys.readouterr().out
