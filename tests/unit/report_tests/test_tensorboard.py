"""TensorBoard files say what the events say."""

from __future__ import annotations

from pathlib import Path

from cluster.telemetry.events import StageStarted, TrainStep
from tests.unit.progress_tests.story import START_S, finished
from tests.unit.report_tests.test_report import run_at
from trainers.tensorboard import follow_tensorboard, main, write_tensorboard


def scalars(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """tag -> (step, value, wall time), read back with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float, float]]] = {}
    for path in folder.glob("events.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = value.tensor.float_val[0] if value.tensor.float_val else 0.0
                    found.setdefault(value.tag, []).append((event.step, number, event.wall_time))
    return found


def test_steps_epochs_and_trials_are_curves_with_their_times(tmp_path: Path) -> None:
    folder = write_tensorboard(run_at(tmp_path, finished()))
    train = scalars(folder / "train")
    assert [step for step, _, _ in train["step/loss"]] == list(range(1, 11))
    assert abs(train["step/loss"][1][1] - 0.5) < 1e-6
    assert abs(train["step/loss"][0][2] - (START_S + 3.01)) < 1e-3
    assert abs(train["epoch/validation.accuracy"][0][1] - 0.97) < 1e-6
    trial = scalars(folder / "search" / "trial-0")
    assert trial["trial/validation.loss"][0][0] == 4
    assert trial["values/train.batch_size_global"][0][1] == 64


def test_written_twice_it_shows_everything_once(tmp_path: Path) -> None:
    run = run_at(tmp_path, finished())
    write_tensorboard(run)
    assert main([str(run.path)]) == 0
    assert len(scalars(run.tensorboard / "train")["step/loss"]) == 10


def test_a_resumed_training_is_one_curve_and_a_changed_one_starts_anew(tmp_path: Path) -> None:
    events = finished()
    starts = [event for event in events if isinstance(event, StageStarted) and event.stage == "train"]
    steps = [event for event in events if isinstance(event, TrainStep)]
    run = run_at(tmp_path, [*events, *starts, *steps[-3:]])
    assert [step for step, _, _ in scalars(write_tensorboard(run) / "train")["step/loss"]] == list(range(1, 11))
    for event in (starts[0].model_copy(update={"digest": "another"}), steps[0]):
        run.sink().emit(event)
    assert [step for step, _, _ in scalars(write_tensorboard(run) / "train")["step/loss"]] == [1]


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    run = run_at(tmp_path, finished())
    assert len(scalars(follow_tensorboard(run) / "train")["step/loss"]) == 10
