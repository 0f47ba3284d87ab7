"""The search stage on a real local Ray with real trainings, and what it does when trials go wrong."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import RunError, SpecError
from cluster.pipeline.stage import StageContext
from cluster.telemetry.events import ListSink, TrialUpdated
from trainers.search.history import FOLDER, SearchHistory, identity_of
from trainers.search.journal import Journal, Trial
from trainers.search.stage import TRIALS, run_search

pytestmark = pytest.mark.usefixtures("ray_local")
MakeContext = Callable[..., StageContext]
RATE = "train.optimizer.learning_rate"
BATCH = "train.batch_size_global"


def table(context: StageContext) -> list[dict]:
    return json.loads((context.folder / TRIALS).read_text(encoding="utf-8"))


def updates(context: StageContext) -> list[TrialUpdated]:
    assert isinstance(context.events, ListSink)
    return [event for event in context.events.events if isinstance(event, TrialUpdated)]


def test_the_best_values_go_into_the_run(make_context: MakeContext) -> None:
    context = make_context()
    result = run_search(context)
    trials = table(context)
    best = trials[result.facts.to_json()["best_trial"]]
    assert result.facts.to_json()["trials"] == len(trials) == 4
    assert trials[0]["source"] == "current"
    assert trials[0]["values"] == {RATE: 3e-3, BATCH: 16}
    whole = [item["value"] for item in trials if item["state"] == "done"]
    assert best["value"] == min(whole)
    assert result.facts.to_json()["best"] == best["values"]
    assert result.facts.to_json()["metrics"]["validation.loss"] == pytest.approx(best["value"])
    resolved = result.facts.changes(context.run_resolved, result.details)
    assert resolved.spec.train.optimizer.learning_rate == best["values"][RATE]
    assert resolved.batch.batch_size_global == best["values"][BATCH]
    assert sorted(path.name for path in context.folder.iterdir()) == [TRIALS]


def test_every_trial_tells_its_epochs_and_one_final_state(make_context: MakeContext) -> None:
    context = make_context(scheduler="none", trials=3)
    run_search(context)
    told = updates(context)
    for name in ("0", "1", "2"):
        states = [event.state for event in told if event.trial == name]
        assert states == ["running"] * 4 + ["done"]
        epochs = [event.metrics["epoch"] for event in told if event.trial == name and "epoch" in event.metrics]
        assert epochs == [1, 2, 3, 3]


def test_asha_stops_what_is_worse_at_its_rung(make_context: MakeContext) -> None:
    """A batch as large as the data and a tiny rate learn next to nothing: such a trial must not see the last epoch."""
    space = {RATE: {"kind": "choice", "values": [3e-2, 2e-2, 1e-7, 2e-7, 3e-7]}}
    context = make_context(space=space, trials=6, concurrency=1)
    run_search(context)
    slow = [item for item in table(context) if item["values"][RATE] < 1e-6]
    assert len(slow) == 3
    assert [item["state"] for item in slow].count("stopped") >= 2
    assert all(item["epochs"] < 3 for item in slow if item["state"] == "stopped")


def test_a_trial_that_diverges_is_rejected_and_the_search_goes_on(make_context: MakeContext) -> None:
    space = {RATE: {"kind": "choice", "values": [1e-2, 1e30]}}
    context = make_context(space=space, trials=3)
    result = run_search(context)
    wild = next(item for item in table(context) if item["values"][RATE] == 1e30)
    assert wild["state"] == "diverged"
    assert result.facts.to_json()["best"][RATE] < 1
    assert updates(context)[-1].state != "running"
    assert any(event.state == "rejected" and event.note for event in updates(context))


def test_trials_that_ended_before_an_interruption_are_not_run_again(make_context: MakeContext) -> None:
    context = make_context(trials=3)
    history = SearchHistory(context.run.path / FOLDER, identity_of(context))
    history.open()
    journal = Journal(history.journal)
    done = Trial(0, {RATE: 3e-3, BATCH: 16}, "current")
    journal.asked(done)
    for epoch in (1, 2, 3):
        journal.reported(0, epoch, 1e-9, {"validation.loss": 1e-9})  # a value that no real training reaches
    done.state = "done"
    journal.ended(done)
    cut = Trial(1, {RATE: 0.02, BATCH: 32}, "random")
    journal.asked(cut)
    journal.reported(1, 1, 0.5, {})
    result = run_search(context)
    trials = table(context)
    assert result.facts.to_json()["best_trial"] == 0
    assert trials[0]["value"] == 1e-9
    assert trials[1]["values"] == {RATE: 0.02, BATCH: 32}
    assert len(trials) == 3
    assert {event.trial for event in updates(context)} == {"1", "2"}


def test_a_finished_search_grows_by_what_is_missing(make_context: MakeContext) -> None:
    """More trials go on from those that ended, repeats are added to them; fewer change nothing."""
    first = table_of(make_context(trials=2, concurrency=1))
    more = make_context(trials=4, concurrency=2, repeats=1)
    grown = table_of(more)
    assert grown[:2] == first
    assert len(grown) == 4
    whole = {event.trial for event in updates(more) if "/" not in event.trial}
    assert whole == {"2", "3"}, "nothing that had ended was run again"
    fewer = make_context(trials=3, repeats=1)
    assert table_of(fewer) == grown
    assert updates(fewer) == []


def test_an_interrupted_search_is_not_exchanged_for_another_without_a_word(make_context: MakeContext) -> None:
    context = make_context(trials=3)
    history = SearchHistory(context.run.path / FOLDER, identity_of(context))
    history.open()
    journal = Journal(history.journal)
    trial = Trial(0, {RATE: 3e-3, BATCH: 16}, "current")
    journal.asked(trial)
    journal.reported(0, 1, 0.4, {})
    trial.state = "stopped"
    journal.ended(trial)
    before = history.journal.read_bytes()
    space = {RATE: {"kind": "log_uniform", "low": 1e-3, "high": 0.5}, BATCH: {"kind": "choice", "values": [8, 16]}}
    with pytest.raises(SpecError, match="interrupted after 1 trial") as caught:
        run_search(make_context(trials=3, space=space))
    assert f"search.space.{RATE}.high: 0.1 -> 0.5" in str(caught.value)
    assert f"search.space.{BATCH}.values: [8, 16, 32] -> [8, 16]" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert history.journal.read_bytes() == before
    history.finish()
    assert len(table_of(make_context(trials=1, space=space))) == 1, "a finished one stays, and another may follow"
    assert history.journal.read_bytes() == before


def table_of(context: StageContext) -> list[dict[str, Any]]:
    run_search(context)
    return table(context)


def test_a_search_without_one_good_trial_says_why(make_context: MakeContext) -> None:
    """The journal holds a trial that diverged; the search asks for no other."""
    context = make_context(trials=1)
    history = SearchHistory(context.run.path / FOLDER, identity_of(context))
    history.open()
    journal = Journal(history.journal)
    wild = Trial(0, {RATE: 0.1, BATCH: 8}, "current", state="diverged", note="the loss is not finite")
    journal.asked(wild)
    journal.ended(wild)
    with pytest.raises(
        RunError, match=r"none of 1 trials ended with a finite validation\.loss: the loss is not"
    ) as caught:
        run_search(context)
    assert "Lower the learning rates" in str(caught.value)


def test_no_search_is_skipped(make_context: MakeContext) -> None:
    context = make_context()
    assert context.resolved is not None
    spec = context.resolved.spec.model_copy(update={"search": None})
    result = run_search(replace(context, resolved=context.resolved.model_copy(update={"spec": spec})))
    assert result.status == "skipped"


def test_after_a_search_the_resources_are_free_and_ctrl_c_is_heard(make_context: MakeContext) -> None:
    """Tune's own handler of Ctrl-C would stay behind and swallow the next one."""
    import ray

    before = signal.getsignal(signal.SIGINT)
    run_search(make_context(trials=2))
    assert signal.getsignal(signal.SIGINT) is before
    deadline = time.monotonic() + 10  # Ray takes a placement group back a moment after it was told to
    while ray.available_resources().get("CPU") != ray.cluster_resources().get("CPU"):
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.05)


def test_the_best_points_are_trained_again_under_other_seeds(make_context: MakeContext) -> None:
    context = make_context(trials=3, repeats=2, scheduler="none")
    result = run_search(context)
    finalists = result.facts.to_json()["repeats"]
    assert len(finalists) == 2
    assert all(len(item["values"]) == 3 and item["low"] <= item["mean"] <= item["high"] for item in finalists)
    assert all(len(set(item["values"])) == 3 for item in finalists)  # other seeds, other weights
    assert finalists[0]["mean"] <= finalists[1]["mean"]
    assert result.facts.to_json()["best_trial"] == finalists[0]["trial"]
    told = {event.trial for event in updates(context)}
    assert {f"{item['trial']}/{seed}" for item in finalists for seed in (8, 9)} <= told


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_the_other_schedulers_run_a_search_to_its_end(make_context: MakeContext, scheduler: str) -> None:
    context = make_context(trials=5, scheduler=scheduler)
    assert run_search(context).facts.to_json()["trials"] == 5
    assert {item["state"] for item in table(context)} <= {"done", "stopped"}
