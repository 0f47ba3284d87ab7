"""What the verbs send and say: the cluster's shell line, states, and who may be signalled."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.atomic import write_json
from cluster.cli.app import call
from cluster.cli.jobs import entrypoint, job_row
from cluster.cli.local_runs import follow_log, status_rows, stop_run
from cluster.errors import RunError
from cluster.runtime.jobs.client import RayJob
from cluster.store.fence import Fence
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
    words = shlex.split(line)
    assert words[:5] == ["exec", "manta", "run", "a b.yaml", "--name"], "the run's parent is what Ray watches"
    assert "train.epochs=3; rm -rf /" in words, "an override is one word, whatever it holds"
    assert words[words.index("--store") + 1] == "s3://b/c d"
    assert line.endswith('--runs-dir "${MANTA_RUNS_DIR:-$HOME/manta-runs}"')
    assert entrypoint("s.yaml", [], "x", store=None, runs_dir="/my runs").endswith("--runs-dir '/my runs'")


COMMAND = "Job entrypoint command failed with exit code 3, last available logs (truncated to 20,000 chars):\n"
SUPERVISOR = (
    "Job supervisor actor died: The actor died unexpectedly before finishing this task.\n\tclass_name: JobSupervisor\n"
    "\tactor_id: 7f2\n\tpid: 13\nThe actor is dead because its worker process has died."
)


@pytest.mark.parametrize(
    ("status", "message", "exit_code", "said"),
    [
        ("FAILED", COMMAND + "[1 s] train failed\nError: Cannot train: one class.\n", 3, "Cannot train: one class."),
        ("FAILED", COMMAND + '    "message": "Cannot \\"x\\".",\n    "rule": ""\n  }\n}\n', 3, 'Cannot "x".'),
        ("FAILED", COMMAND + "Killed\n}\n", -9, "its command ended with code -9; 'manta logs a' shows what it wrote"),
        ("FAILED", SUPERVISOR, None, "is gone, and its run ends, too; submit it with the same --id to go on"),
        ("PENDING", "Job has not started yet. It may be waiting for the runtime environment to be set up.", None,
         "waiting: its files are unpacked on the cluster"),
        ("FAILED", "Some words\nof a later Ray.", None, "Some words of a later Ray."),
        ("RUNNING", "Job is currently running.", None, ""),
    ],
)  # fmt: skip
def test_what_became_of_a_job_is_one_sentence(status: str, message: str, exit_code: int | None, said: str) -> None:
    row = job_row(RayJob("a", status, message, exit_code=exit_code, metadata={"manta.run": "x", "manta.owner": "ana"}))
    assert (row["state"], row["exit_code"], row["run"], row["owner"]) == (status.lower(), exit_code, "x", "ana")
    assert row["note"].endswith(said)
    assert "\n" not in row["note"]
    assert bool(row["note"]) == bool(said)


def test_a_run_that_nobody_works_on_is_not_signalled(run: RunFolder) -> None:
    write_json(run.state, {"state": "serving", "pid": 1, "host": socket.gethostname()})
    assert stop_run(run) is False
    assert status_rows(run.path.parent, None)[0]["state"] == "cut short"


def test_only_the_process_that_holds_the_lock_here_is_signalled_and_others_are_asked(run: RunFolder) -> None:
    fence = Fence.draw(run)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run.lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        for pid, host in ((holder.pid, "elsewhere"), (os.getpid(), socket.gethostname())):
            run.stop_request.unlink(missing_ok=True)
            write_json(run.state, {"state": "serving", "pid": pid, "host": host})
            with pytest.raises(RunError, match=f"process {pid} on host {host}, is still there"):
                stop_run(run, deadline_s=0.0)
            assert holder.poll() is None
            assert fence.asked_to_stop()
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
