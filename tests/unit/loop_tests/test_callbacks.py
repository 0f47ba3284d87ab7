"""Callbacks of the user's: when they are called, what they see, what a resume gives back, and whose error it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.errors import InterruptedRunError, ModelError, SpecError
from cluster.telemetry.events import ListSink, Message
from tests.unit.loop_tests.rig import request_for, run_ranks, write_data
from trainers.loop import FitRequest, fit

CPU = torch.device("cpu")
NAME = f"{__name__}:Record"


class Record:
    """Writes what it sees; its calls go on with the number that its state has."""

    def __init__(
        self, path: str, everywhere: bool = False, last_epoch: int = 99, fail: str = "", rank: int = 0
    ) -> None:
        self.path, self.last_epoch, self.fail, self.rank = path, last_epoch, fail, rank
        self.calls = 0
        if everywhere:
            self.ranks = "all"

    def _note(self, moment: str, training: Any, **more: Any) -> None:
        here = dist.get_rank() if dist.is_initialized() else 0
        if self.fail == moment and here == self.rank:
            raise ZeroDivisionError(f"the user's bug {moment}")
        self.calls += 1
        seen = {"rank": training.rank, "epoch": training.epoch, "update": training.update, "call": self.calls}
        line = {"moment": moment, **seen, "loss": training.loss, "rate": training.learning_rate, **more}
        with Path(f"{self.path}.{here}").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def after_update(self, training: Any) -> None:
        self._note("update", training, of=[training.epochs, training.updates, training.workers])

    def after_epoch(self, training: Any, metrics: dict[str, float]) -> bool:
        self._note("epoch", training, metrics=sorted(metrics))
        return training.epoch >= self.last_epoch

    def after_checkpoint(self, training: Any, path: Path) -> None:
        self._note("checkpoint", training, there=(path / "manifest.json").exists())

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class Unkeepable:
    def after_update(self, training: Any) -> None:
        pass

    def state_dict(self) -> object:
        return {"weights": training_object}


training_object = object()


class Nothing:
    pass


def request_of(folder: Path, callbacks: list[Any], workers: int = 1, **more: Any) -> FitRequest:
    return request_for(
        folder / "data", batch=12, micro=4, workers=workers, checkpoints=folder / "ck",
        **{"epochs": 2, "callbacks": callbacks, **more},
    )  # fmt: skip


def lines(path: Path, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{path}.{rank}").read_text().splitlines()]


def test_moments_come_in_order_with_the_numbers_of_training(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 36)
    spec = {"name": NAME, "arguments": {"path": str(tmp_path / "seen")}}
    sink = ListSink()
    result = fit(request_of(tmp_path, [spec], log_every_updates=1), sink=sink, device=CPU)
    seen = lines(tmp_path / "seen")
    epoch = ["update"] * 3 + ["epoch", "checkpoint"]
    assert [line["moment"] for line in seen] == epoch * 2
    assert [(line["epoch"], line["update"]) for line in seen if line["moment"] == "epoch"] == [(1, 3), (2, 6)]
    assert [line["update"] for line in seen if line["moment"] == "update"] == [1, 2, 3, 4, 5, 6]
    assert all(line["of"] == [2, 6, 1] for line in seen if line["moment"] == "update")
    assert all(line["there"] for line in seen if line["moment"] == "checkpoint")
    told = [event for event in sink.events if event.model_dump()["kind"] == "train_step"]
    found = [(line["loss"], line["rate"]) for line in seen if line["moment"] == "update"]
    assert found == [(pytest.approx(event.loss), event.learning_rate) for event in told]  # type: ignore[attr-defined]
    assert seen[3]["metrics"] == sorted(result.history[0].metrics)


def test_over_a_resume_each_update_is_counted_once(tmp_path: Path) -> None:
    """The state is that of the checkpoint: updates that a kill has undone are seen again, with the same numbers."""
    write_data(tmp_path / "data", 36)
    spec = {"name": NAME, "arguments": {"path": str(tmp_path / "seen")}}
    request, calls = request_of(tmp_path, [spec], checkpoint={"every_updates": 2}), iter(range(100))
    with pytest.raises(InterruptedRunError):
        fit(request, sink=ListSink(), device=CPU, interrupt=lambda: next(calls) == 3)
    fit(request, sink=ListSink(), device=CPU)
    updates = [line for line in lines(tmp_path / "seen") if line["moment"] == "update"]
    assert [line["update"] for line in updates] == [1, 2, 3, 4, 5, 6]
    counts = [line["call"] for line in lines(tmp_path / "seen") if line["moment"] != "checkpoint"]
    assert counts == sorted(counts), "the state came back"


def test_a_callback_ends_the_training_after_an_epoch(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 36)
    spec = {"name": NAME, "arguments": {"path": str(tmp_path / "seen"), "last_epoch": 2}}
    result = fit(request_of(tmp_path, [spec], epochs=9), sink=ListSink(), device=CPU)
    assert (len(result.history), result.stopped_early) == (2, True)


def _on_rank(rank: int, folder: str, everywhere: bool, fail: str) -> int:
    arguments = {"path": f"{folder}/seen", "everywhere": everywhere, "fail": fail, "rank": 1}
    request = request_of(Path(folder), [{"name": NAME, "arguments": arguments}], workers=2)
    return fit(request, sink=ListSink(), device=CPU).updates


@pytest.mark.parametrize("everywhere", [False, True])
def test_it_is_on_the_first_worker_or_on_all(tmp_path: Path, everywhere: bool) -> None:
    write_data(tmp_path / "data", 36)
    assert run_ranks(2, _on_rank, tmp_path / "ranks", str(tmp_path), everywhere, "") == [6, 6]
    assert [line["rank"] for line in lines(tmp_path / "seen")] == [0] * 10
    assert Path(f"{tmp_path}/seen.1").exists() == everywhere
    if everywhere:
        assert [line["loss"] for line in lines(tmp_path / "seen", 1)] == [
            line["loss"] for line in lines(tmp_path / "seen")
        ], "numbers are those of all workers"


@pytest.mark.parametrize("moment", ["update", "epoch", "checkpoint"])
def test_an_error_on_one_worker_ends_all_with_its_words(tmp_path: Path, moment: str) -> None:
    write_data(tmp_path / "data", 36)
    first, second = run_ranks(2, _on_rank, tmp_path / "ranks", str(tmp_path), True, moment, may_raise=True)
    assert second == ("raised", "ZeroDivisionError", f"the user's bug {moment}")
    assert first[:2] == ("raised", "PeerFailedError")
    assert f"the user's bug {moment}" in first[2]


@pytest.mark.parametrize(
    ("callback", "error", "words"),
    [
        (f"{__name__}:Recrod", SpecError, "train.callbacks.0"),
        ("no_such_module:Record", SpecError, "No module named"),
        (f"{__name__}:Nothing", SpecError, "none of the methods"),
        (f"{__name__}:Unkeepable", ModelError, "not JSON serializable"),
    ],
)
def test_what_cannot_be_a_callback_is_one_sentence(
    tmp_path: Path, callback: str, error: type[Exception], words: str
) -> None:
    write_data(tmp_path / "data", 24)
    with pytest.raises(error, match=words):
        fit(request_of(tmp_path, [callback]), sink=ListSink(), device=CPU)


def test_time_ends_the_epoch_and_the_training(tmp_path: Path) -> None:
    """Also where a resume has spent it all: one update is made, so that a run always moves."""
    write_data(tmp_path / "data", 36)
    sink = ListSink()
    request = request_of(tmp_path, [], epochs=9, max_time_s=1e-9)
    result = fit(request, sink=sink, device=CPU)
    assert (result.updates, len(result.history), result.stopped_early) == (1, 1, True)
    said = [event.text for event in sink.events if isinstance(event, Message) and "max_time_s" in event.text]
    assert said == ["training ends after update 1: train.max_time_s has passed"]
    assert fit(request, sink=ListSink(), device=CPU).updates == 1, "it has ended"


def _timed(rank: int, folder: str) -> int:
    request = request_of(Path(folder), [], workers=2, epochs=9, max_time_s=1e-9)
    return fit(request, sink=ListSink(), device=CPU).updates


def test_the_first_workers_clock_is_everyones(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 36)
    assert run_ranks(2, _timed, tmp_path / "ranks", str(tmp_path)) == [1, 1]


def test_max_updates_ends_epoch_training_and_schedule(tmp_path: Path) -> None:
    write_data(tmp_path / "data", 36)
    sink = ListSink()
    schedule = {"name": "linear", "warmup": 0.0, "floor": 0.25}
    request = request_of(tmp_path, [], epochs=9, max_updates=5, schedule=schedule, log_every_updates=1)
    result = fit(request, sink=sink, device=CPU)
    assert (result.updates, len(result.history)) == (5, 2)
    steps = [event for event in sink.events if event.model_dump()["kind"] == "train_step"]
    assert steps[-1].learning_rate == pytest.approx(3e-3 * 0.25)  # type: ignore[attr-defined]
    assert {event.epochs for event in result.history} == {2}
