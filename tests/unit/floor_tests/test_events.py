"""Records round-trip, appends of several processes never mix, a torn last line waits."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from cluster.telemetry.events import (
    EpochFinished,
    FileSink,
    Message,
    decode,
    encode,
    follow_events,
    read_events,
)


def test_records_round_trip() -> None:
    event = EpochFinished(stage="train", epoch=1, epochs=2, update=10, metrics={"train.loss": 0.5})
    assert decode(encode(event)) == event


def test_non_finite_numbers_stay_json_and_come_back() -> None:
    event = EpochFinished(stage="train", epoch=1, epochs=2, update=10, metrics={"train.loss": float("nan")})
    again = decode(encode(event))
    assert isinstance(again, EpochFinished)
    assert again.metrics["train.loss"] != again.metrics["train.loss"]


def _write(path: str, name: str, count: int) -> None:
    sink = FileSink(Path(path))
    for index in range(count):
        sink.emit(Message(stage=name, text=f"{index} " + "x" * 500))


def test_appends_of_several_processes_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(path), f"w{i}", 200)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    events = [event for event in read_events(path) if isinstance(event, Message)]
    for i in range(3):
        texts = [event.text.split()[0] for event in events if event.stage == f"w{i}"]
        assert texts == [str(index) for index in range(200)]


def test_a_torn_last_line_waits_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = encode(Message(text="whole"))
    path.write_text(line + "\n" + line[:10])
    assert len(read_events(path)) == 1

    def finish() -> bool:
        with path.open("a") as file:
            file.write(line[10:] + "\n")
        return True

    followed = list(follow_events(path, finish))
    assert [event.kind for event in followed] == ["message", "message"]


def test_follow_starts_at_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = FileSink(path)
    sink.emit(Message(text="before"))
    offset = path.stat().st_size
    sink.emit(Message(text="after"))
    texts = [
        event.text for event in follow_events(path, lambda: True, offset_bytes=offset) if isinstance(event, Message)
    ]
    assert texts == ["after"]
