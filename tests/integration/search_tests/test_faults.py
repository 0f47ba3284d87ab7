"""A search when things go wrong for real: memory, a killed worker, a killed driver. The ledger must be right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private.state import actors

from cluster.pipeline.stage import StageContext
from cluster.telemetry.events import ListSink, Record, TrialUpdated
from trainers.search.history import JOURNAL
from trainers.search.journal import read_journal
from trainers.search.stage import TRIALS, run_search

MakeContext = Callable[..., StageContext]
ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 120


def table(context: StageContext) -> list[dict[str, Any]]:
    return json.loads((context.folder / TRIALS).read_text(encoding="utf-8"))


@pytest.mark.usefixtures("ray_local")
def test_a_trial_that_runs_out_of_memory_is_rejected_with_its_reason_and_not_tried_again(
    make_context: MakeContext,
) -> None:
    """The larger model asks for 16 TB: the allocator refuses."""
    space = {"model.hidden": {"kind": "choice", "values": [[8], [10**12]]}}
    context = make_context(space=space, trials=2)
    result = run_search(context)
    huge = next(item for item in table(context) if item["values"]["model.hidden"] == [10**12])
    assert huge["state"] == "oom"
    assert "memory" in huge["note"]
    assert result.facts.to_json()["best"] == {"model.hidden": [8]}
    assert isinstance(context.events, ListSink)
    states = [e.state for e in context.events.events if isinstance(e, TrialUpdated) and e.trial == str(huge["trial"])]
    assert states == ["running", "rejected"]


class Killer(ListSink):
    """Kills a trial's process once, when trial 0 has reported its first epoch."""

    killed = 0

    def emit(self, event: Record) -> None:
        super().emit(event)
        if isinstance(event, TrialUpdated) and event.metrics.get("epoch") == 1 and not self.killed:
            alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
            self.killed = next(actor["Pid"] for actor in alive if "ImplicitFunc" in actor["ActorClassName"])
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.usefixtures("ray_local")
def test_a_killed_trial_process_costs_one_retry_and_no_trial(make_context: MakeContext) -> None:
    context = make_context(events=Killer(), trials=3, concurrency=1, scheduler="none")
    run_search(context)
    assert isinstance(context.events, Killer)
    assert context.events.killed
    trials = table(context)
    assert [item["state"] for item in trials] == ["done"] * 3
    assert all(sorted(item["reports"]) == ["1", "2", "3"] for item in trials)
    told = [event for event in context.events.events if isinstance(event, TrialUpdated) and "epoch" in event.metrics]
    epochs = Counter((event.trial, event.metrics["epoch"]) for event in told if event.state == "running")
    assert set(epochs.values()) == {1}  # the retry's first epoch is the same report, told once


@pytest.mark.usefixtures("ray_local")
def test_a_search_whose_driver_was_killed_ends_like_one_that_was_not(
    make_context: MakeContext, clouds: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver with its Ray; then the same command. Control: the same search without the fault."""
    search = {"trials": 6, "concurrency": 1}
    folder = tmp_path / "search"
    command = [sys.executable, "-m", "tests.integration.search_tests.clouds", str(clouds), str(folder)]
    driver = subprocess.Popen([*command, json.dumps(search)], cwd=ROOT, start_new_session=True)
    try:
        ended_before = wait_for_ended(folder, 2, driver)
    finally:
        family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        for process in family:
            if process.is_running():
                process.kill()
    resumed = make_context(**search)
    control = make_context(folder="control", **search)
    assert run_search(resumed).facts == run_search(control).facts
    assert table(resumed) == table(control)
    assert isinstance(resumed.events, ListSink)
    told = {event.trial for event in resumed.events.events if isinstance(event, TrialUpdated)}
    assert not told & ended_before  # nothing that had ended was run again


@pytest.mark.slow
def test_a_trial_that_the_memory_monitor_kills_is_an_outcome_and_the_search_goes_on(
    clouds: Path, tmp_path: Path
) -> None:
    """Ray kills the process that takes the host's memory past its threshold; Tune alone would end the experiment."""
    headroom_bytes = 5 << 29  # for Ray's own processes and those of two trials; the large model asks for 4 GB
    memory = psutil.virtual_memory()
    search = {
        "space": {"model.hidden": {"kind": "choice", "values": [[8], [40_000, 25_000]]}},
        "trials": 2,
        "concurrency": 1,
    }
    environment = {
        **os.environ,
        "RAY_memory_usage_threshold": f"{(memory.total - memory.available + headroom_bytes) / memory.total:.4f}",
        "RAY_memory_monitor_refresh_ms": "50",
    }
    folder = tmp_path / "search"
    command = [sys.executable, "-m", "tests.integration.search_tests.clouds", str(clouds), str(folder)]
    for _ in range(2):  # a search that is started again meets the outcome in its journal
        done = subprocess.run(
            [*command, json.dumps(search)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
        trials = json.loads((folder / TRIALS).read_text(encoding="utf-8"))
        assert [(item["values"]["model.hidden"][0], item["state"]) for item in trials] == [(8, "done"), (40_000, "oom")]
        assert "memory monitor" in trials[1]["note"]


def wait_for_ended(folder: Path, count: int, driver: subprocess.Popen[bytes]) -> set[str]:
    """Numbers of the trials that have ended, once there are `count`."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the driver ended before it was killed"
        journals = folder.with_name(f"{folder.name}.run").glob(f"search/*/{JOURNAL}")
        ended = {str(trial.number) for journal in journals for trial in read_journal(journal) if trial.ended}
        if len(ended) >= count:
            return ended
        time.sleep(0.02)
    raise AssertionError("no trial ended in time")
