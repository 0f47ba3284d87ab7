"""`manta submit` to a real head with a token: ship, follow to the end, fetch the bundle, verify every byte."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.bundle import open_bundle
from cluster.pipeline.supervision import ORPHANED
from cluster.store.locks import is_locked
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EpochFinished, Progress, read_events
from tests.e2e.cluster_tests.head import Head, clean_environment, free_ports, start_head, wait_for

SPEC = """
version: 1
name: tiny
data: {source: {kind: sklearn, dataset: digits}}
model: {family: mlp}
train: {epochs: 2, workers: 1, batch_size_global: 128}
search: null
compress: null
serve: null
"""
RUN_S = 240


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with start_head(tmp_path_factory.mktemp("head")) as started:
        yield started


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(SPEC, encoding="utf-8")
    (folder / "secret.env").write_text("KEY=1", encoding="utf-8")
    (folder / ".mantaignore").write_text("*.env\n", encoding="utf-8")
    return folder


def manta(*words: str, cwd: Path, env: dict[str, str], timeout: float = RUN_S) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from cluster.cli import main; main()", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def test_submit_follow_fetch_verify(head: Head, project: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    words = ("submit", "tiny.yaml", "--address", head.url, "--store", store, "--id", "tiny-1", "--json")
    done = manta(*words, cwd=project, env=head.environment())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"]["state"] == "succeeded"
    assert "epoch 2/2" in done.stderr, "the log was not followed to the end"

    again = manta(*words, cwd=project, env=head.environment())
    assert json.loads(again.stdout)["job"]["started_unix_s"] == json.loads(done.stdout)["job"]["started_unix_s"]

    fetched = manta(
        "fetch", "tiny-1", "--address", head.url, "--to", str(tmp_path / "got"), cwd=tmp_path, env=head.environment()
    )
    assert fetched.returncode == 0, fetched.stderr
    bundle = open_bundle(tmp_path / "got")
    assert bundle.manifest.task == "classification"
    assert not (tmp_path / "home" / ".ray").exists()


@pytest.mark.slow
def test_a_stopped_job_ends_cleanly_and_its_run_can_go_on(head: Head, project: Path) -> None:
    """Ray's stop reaches the driver as SIGTERM, and the run has the time to note that it was interrupted."""
    at = ("--address", head.url)
    long = ("submit", "tiny.yaml", *at, "--name", "long", "--set", "train.epochs=100000", "--id", "long-1", "--detach")
    started = manta(*long, cwd=project, env=head.environment())
    assert started.returncode == 0, started.stderr
    run = RunFolder(head.runs / "long")
    wait_for(lambda: any(isinstance(event, EpochFinished) for event in read_events(run.events)), RUN_S)

    stopped = manta("stop", "long-1", *at, "--json", cwd=project, env=head.environment())
    assert json.loads(stopped.stdout)["stopped"] is True
    status = manta("status", "long-1", *at, "--json", cwd=project, env=head.environment())
    assert json.loads(status.stdout)[0]["state"] == "stopped"
    assert run.read_state()["state"] == "interrupted"
    assert not is_locked(run.lock)
    assert "epoch 1/100000" in manta("logs", "long-1", *at, cwd=project, env=head.environment()).stdout
    assert run.record("prepare") is not None, "what was finished is kept"


def processes_of(head: Head, word: str) -> list[psutil.Process]:
    """Living processes of a cluster whose title has a word."""
    found = []
    for each in psutil.Process(head.process.pid).children(recursive=True):
        try:
            found += [each] if word in " ".join(each.cmdline()) and each.status() != psutil.STATUS_ZOMBIE else []
        except psutil.NoSuchProcess:
            continue
    return found


def epochs(run: RunFolder) -> list[int]:
    return [event.epoch for event in read_events(run.events) if isinstance(event, EpochFinished)]


@pytest.mark.slow  # 90 s
@pytest.mark.timeout(400)
def test_a_job_that_lost_its_supervisor_or_its_driver_leaves_nothing_and_goes_on_under_its_id(
    head: Head, project: Path
) -> None:
    at, run = ("--address", head.url), RunFolder(head.runs / "hurt")
    spec = ("--set", "train.epochs=200", "--set", "train.checkpoint.every_epochs=2")
    words = ("submit", "tiny.yaml", *at, "--name", "hurt", *spec, "--id", "hurt-1")
    assert manta(*words, "--detach", cwd=project, env=head.environment()).returncode == 0
    wait_for(lambda: len(epochs(run)) >= 3, RUN_S)
    driver = psutil.Process(run.read_state()["pid"])
    (supervisor,) = processes_of(head, "JobSupervisor")
    supervisor.kill()
    wait_for(lambda: not driver.is_running() and not processes_of(head, "RayTrainWorker"), 10.0)
    assert not is_locked(run.lock)
    (row,) = json.loads(manta("status", "hurt", *at, "--json", cwd=project, env=head.environment()).stdout)
    assert (row["id"], row["state"]) == ("hurt-1", "failed")
    assert "the same --id to go on" in row["note"]
    stopped = manta("stop", "hurt", *at, "--json", cwd=project, env=head.environment())
    assert json.loads(stopped.stdout)["stopped"] is False, stopped.stdout
    log = manta("logs", "hurt-1", *at, "--driver", cwd=project, env=head.environment())
    assert ORPHANED in log.stdout, log.stderr

    before = len(epochs(run))
    assert manta(*words, "--detach", cwd=project, env=head.environment()).returncode == 0
    wait_for(lambda: len(epochs(run)) >= before + 3, RUN_S)
    psutil.Process(run.read_state()["pid"]).kill()
    wait_for(lambda: not processes_of(head, "RayTrainWorker") and not is_locked(run.lock), 30.0)
    done = manta(*words, cwd=project, env=head.environment())
    assert done.returncode == 0, done.stderr
    assert "Job hurt-1 goes on." in done.stderr
    starts = [index for index, epoch in enumerate(epochs(run)) if epoch == 1]
    assert starts == [0], "each went on from the checkpoint of the one before"
    assert epochs(run)[-1] == 200


@pytest.mark.soak  # 60 s; its workers wait in tests/integration/train_tests/test_waiting.py too
@pytest.mark.timeout(400)
def test_runs_that_find_no_room_wait_their_turn_say_so_and_all_finish(project: Path, tmp_path: Path) -> None:
    """Three runs of two workers, on two CPUs, without a single restart."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    with start_head(folder, num_cpus=2) as small:
        spec = ("--set", "train.workers=2", "--set", "train.faults.worker_restarts=0", "--address", small.url)
        for name, own in (("one", "train.epochs=80"), ("two", "train.epochs=2"), ("three", "train.epochs=3")):
            first = ("--priority", "1") if name == "three" else ()
            words = ("submit", "tiny.yaml", "--name", name, "--id", name, "--detach", *spec, "--set", own, *first)
            assert manta(*words, cwd=project, env=small.environment()).returncode == 0
            if name == "one":
                wait_for_words(RunFolder(small.runs / name), "starting 2 workers")
        ends = [manta("logs", "-f", name, "--address", small.url, cwd=project, env=small.environment(), timeout=380)
                for name in ("one", "two", "three")]  # fmt: skip
        assert [end.returncode for end in ends] == [0, 0, 0], [end.stdout[-2000:] for end in ends]
        assert "room for 0 workers, run one holds 2 CPUs for an unknown time" in ends[1].stdout
        assert "behind three in the queue" in ends[1].stdout
        trained = [[event.time_s for event in read_events(RunFolder(small.runs / name).events)
                    if isinstance(event, EpochFinished)] for name in ("one", "three", "two")]  # fmt: skip
        assert trained[0][-1] < trained[1][0] < trained[1][-1] < trained[2][0], "by priority, then by submission"


def wait_for_words(run: RunFolder, start: str) -> None:
    """Until a text of the run's progress starts so."""
    wait_for(lambda: any(isinstance(event, Progress) and event.text.startswith(start)
                         for event in read_events(run.events)), RUN_S)  # fmt: skip


@pytest.mark.slow  # 40 s
def test_an_endpoint_outlives_the_job_that_made_it(head: Head, project: Path) -> None:
    (port,) = free_ports(1)
    serve = ("--set", f"serve={{port: {port}, name: kept}}")
    words = ("submit", "tiny.yaml", "--address", head.url, "--name", "served", *serve, "--id", "served-1", "--json")
    done = manta(*words, cwd=project, env=head.environment())
    assert done.returncode == 0, done.stderr
    assert "predict   done" in done.stderr
    ready = httpx.get(f"http://127.0.0.1:{port}/kept/v2/health/ready", timeout=30)
    assert ready.status_code == 200


@pytest.mark.parametrize(
    ("words", "token", "said", "code"),
    [
        (("submit", "tiny.yaml"), "0" * 64, "refuses the token", 3),
        (("submit", "tiny.yaml"), None, "demands a token", 3),
        (("logs", "nobody"), "right", "no such job", 2),
        (("stop", "nobody"), "right", "no such job", 2),
    ],
)
def test_a_refusal_is_one_sentence(
    head: Head, project: Path, tmp_path: Path, words: tuple[str, ...], token: str | None, said: str, code: int
) -> None:
    env = head.environment(HOME=str(tmp_path))
    if token != "right":
        env.pop("RAY_AUTH_TOKEN")
    if token and token != "right":
        env["RAY_AUTH_TOKEN"] = token
    done = manta(*words, "--address", head.url, cwd=project, env=env, timeout=60)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unreachable_address_is_one_sentence(project: Path) -> None:
    done = manta(
        "submit", "tiny.yaml", "--address", "http://127.0.0.1:9", cwd=project, env=clean_environment(), timeout=30
    )
    assert done.returncode == 3
    assert "Cannot reach the cluster at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
