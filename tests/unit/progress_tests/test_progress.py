"""What a person sees while a run goes on, on a terminal and in a pipe."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable

import pytest
from rich.console import Console

from cluster.telemetry.events import Message, Record, RunFailed, RunStarted, StageFinished
from cluster.telemetry.final import final_lines
from cluster.telemetry.log import setup_logging
from cluster.telemetry.plain import PlainDisplay
from cluster.telemetry.progress import LiveDisplay, draw_run, final_parts, make_display
from cluster.telemetry.view import RunView, format_bytes, format_duration, format_metric, format_value
from tests.unit.progress_tests.story import STAGES, START_S, SUMMARY, finished, searching, training


def view_of(events: Iterable[Record]) -> RunView:
    view = RunView()
    for event in events:
        view.apply(event)
    return view


def picture(events: Iterable[Record], width: int) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False)
    view = view_of(events)
    console.print(draw_run(view, now_s=START_S + 5, width=width))
    for part in final_parts(view):
        console.print(part)
    return console.export_text()


def plain(events: Iterable[Record]) -> list[str]:
    stream = io.StringIO()
    display = PlainDisplay(stream)
    for event in events:
        display.show(event)
    display.close()
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("events", [searching(), training(), finished()])
def test_a_picture_fits_its_width_and_names_every_stage(width: int, events: list[Record]) -> None:
    text = picture(events, width)
    assert max(map(len, text.splitlines())) <= width
    assert all(stage in text for stage in STAGES)


@pytest.mark.parametrize("width", [80, 120])
def test_a_running_search_shows_each_trial_with_its_values_whole(width: int) -> None:
    text = picture(searching(), width)
    assert "1 of 6 trials" in text
    assert text.count("0.00341") == 3
    assert ("rejected validation.loss is nan" if width > 100 else "rejected valid") in text


def test_a_running_training_shows_epoch_loss_rate_throughput_and_time_left() -> None:
    text = picture(training(), 80)
    for part in ("epoch 1/20", "8.3 s left", "loss 0.1", "0.0024", "2,134", "97.00 %", "one worker is slow"):
        assert part in text


def test_information_goes_with_its_stage_and_a_warning_stays() -> None:
    info = Message(time_s=START_S + 2, stage="search", text="6 trials, 2 at a time")
    warning = Message(time_s=START_S + 2, stage="search", level="warning", text="a trial process died")
    assert "2 at a time" in picture([*searching(), info, warning], 80)
    later = picture([*searching(), info, warning, *training()[len(searching()) :]], 80)
    assert "2 at a time" not in later
    assert "a trial process died" in later


def test_the_end_shows_accuracy_sizes_latency_and_the_next_commands() -> None:
    text = picture(finished(), 120)
    for part in ("98.61 %", "400.0 kB → 100.0 kB", "p50 1.23 ms · p99 3.46 ms", "curl -s", "manta stop digits"):
        assert part in text


def test_a_failed_run_shows_what_was_found_and_the_remedy() -> None:
    error = {"attempted": "Cannot read x.csv", "found": "no such file", "rule": "", "remedy": "Give its path."}
    text = picture([*searching(), RunFailed(run="digits", error=error)], 80)
    assert "Cannot read x.csv: no such file" in text
    assert "Give its path." in text


def test_a_resumed_run_forgets_the_earlier_attempt() -> None:
    view = view_of([*training(), RunStarted(time_s=START_S + 60, run="digits", stages=STAGES, pid=2, host="here")])
    assert view.current is None
    assert not view.messages


def test_plain_lines_grow_with_epochs_and_trials_not_with_steps_or_reports() -> None:
    lines = plain(training())
    assert sum("trial" in line for line in lines if "search" in line) == 2  # the running one has no line yet
    assert sum("epoch 1/20" in line for line in lines) == 1
    assert len(lines) == 10
    assert not any("\x1b" in line for line in lines)


def test_plain_lines_end_with_the_table() -> None:
    lines = plain(finished())
    assert lines[-len(final_lines(SUMMARY, 10.0)) :] == final_lines(SUMMARY, 10.0)


def test_plain_lines_are_written_at_once() -> None:
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    PlainDisplay(stream).show(searching()[0])
    assert stream.flushed


def test_a_pipe_gets_plain_lines_and_a_terminal_the_live_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_display(console=Console(file=io.StringIO())), PlainDisplay)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    live = make_display(console=terminal)
    assert isinstance(live, LiveDisplay)
    live.close()


def test_with_json_nothing_of_the_display_reaches_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display(as_json=True)
    for event in finished():
        display.show(event)
    display.note("stopping")
    display.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "stopping" in captured.err


def test_a_live_display_leaves_the_last_picture_and_the_table() -> None:
    stream = io.StringIO()
    display = LiveDisplay(Console(file=stream, force_terminal=True, width=100, highlight=False))
    for event in finished():
        display.show(event)
    display.close()
    text = stream.getvalue()
    assert "manta stop digits" in text
    assert text.rindex("check") < text.index("manta stop digits")


def test_records_in_any_order_do_not_raise() -> None:
    view = view_of([StageFinished(stage="unheard", status="done", duration_s=1.0), *reversed(finished())])
    draw_run(view, now_s=START_S, width=80)


def test_an_endpoint_that_was_stopped_is_offered_again_before_it_is_asked() -> None:
    serve = "manta deploy runs/digits/bundle --name digits"
    stopped = {**SUMMARY, "endpoint": {**SUMMARY["endpoint"], "kept": False, "serve": serve}}
    text = "\n".join(final_lines(stopped))
    assert text.index(serve) < text.index("curl")
    assert "manta stop" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.31, "0.3 s"), (42.0, "42 s"), (187.0, "3:07"), (3723.0, "1:02:03"), (None, "")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


def test_figures() -> None:
    assert [format_value(v) for v in (1797, 0.0031415, 1.5e-6, 3.0, 0.0)] == ["1,797", "0.003142", "1.50e-06", "3", "0"]
    whole = (99999, 99999.0, 99999.5, 12345.6, -1234567.8, 54321.25, 2.5e16, float("inf"))
    assert [format_value(v) for v in whole] == [
        "99,999", "99,999", "100,000", "12,346", "-1,234,568", "54,321", "2.50e+16", "inf",
    ]  # fmt: skip
    assert format_metric("validation.accuracy", 0.98765) == "98.77 %"
    assert format_metric("validation.loss", 0.98765) == "0.9877"
    assert [format_bytes(v) for v in (0, 999, 76_300, 2.5e9, None)] == ["0 B", "999 B", "76.3 kB", "2.5 GB", "unknown"]


def test_log_setup_twice_leaves_one_handler() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        setup_logging()
        setup_logging()
        assert len([handler for handler in root.handlers if handler not in before]) == 1
        assert logging.getLogger("ray").level == logging.WARNING
        loud = logging.getLogger("ray.serve")  # it sets its level when Ray Serve is imported
        records = [loud.makeRecord(loud.name, each, "", 0, "", (), None) for each in (logging.INFO, logging.WARNING)]
        assert [bool(loud.filter(record)) for record in records] == [False, True]
        with warnings.catch_warnings(record=True) as shown:
            setup_logging()
            logging.captureWarnings(False)
            for module in ("ray.data.context", "rayleigh", "trainers.old"):
                warnings.warn_explicit(f"{module}: `x` is deprecated", DeprecationWarning, "x.py", 1, module=module)
        assert [str(each.message).partition(":")[0] for each in shown] == ["rayleigh", "trainers.old"]
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)
