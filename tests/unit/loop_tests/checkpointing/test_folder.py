"""Checkpoints on disk: newest valid wins, damaged ones are reported, retention, fence, disk full."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

import trainers.loop.checkpointing.folder as checkpoint_module
from cluster.errors import CheckpointError, DiskFullError
from cluster.spec.train import BestSpec, CheckpointSpec
from cluster.telemetry.events import EpochFinished, ListSink, Message
from tests.unit.loop_tests.rig import request_for, write_data
from trainers.loop import FitRequest, fit
from trainers.loop.checkpointing.folder import CheckpointFolder, Snapshot, damage, decode_floats, encode_floats

CPU = torch.device("cpu")


def folder_at(path: Path, **spec: int) -> CheckpointFolder:
    folder = CheckpointFolder(path, CheckpointSpec(**spec), BestSpec())
    folder.take_over()
    return folder


def tiny(value: float = 1.0) -> Snapshot:
    return Snapshot({"model": {"w": torch.full((4,), value)}}, {"cursor": {"update": 3}, "loss": float("inf")})


def test_what_is_written_is_read_and_nothing_is_pickled(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.write("e00000-w00000001", tiny(2.0), None)
    read = folder.read("e00000-w00000001")
    assert torch.equal(read.tensors["model"]["w"], torch.full((4,), 2.0))
    assert read.state == {"cursor": {"update": 3}, "loss": float("inf")}
    suffixes = {path.suffix for path in (tmp_path / "e00000-w00000001").iterdir()}
    assert suffixes == {".safetensors", ".json"}


@pytest.mark.parametrize("kind", ["flipped", "truncated", "missing", "no-manifest", "torn-manifest"])
def test_damaged_checkpoint_is_left_out_reported_and_the_one_before_wins(tmp_path: Path, kind: str) -> None:
    prepared = write_data(tmp_path / "data", 32, dtype="FP32")

    def request(checkpoints: Path | None) -> FitRequest:
        return request_for(
            prepared, batch=8, micro=8, arguments={"double": False}, epochs=4, checkpoints=checkpoints, keep="last"
        )

    whole = fit(request(None), sink=ListSink(), device=CPU)
    fit(request(tmp_path / "ck"), sink=ListSink(), device=CPU, on_epoch=lambda event: event.epoch == 3)
    newest = tmp_path / "ck" / "e00003-w00000000"
    state = newest / "model.safetensors"
    data = state.read_bytes()
    if kind == "flipped":
        state.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    elif kind == "truncated":
        state.write_bytes(data[:-10])
    elif kind == "missing":
        state.unlink()
    elif kind == "no-manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text((newest / "manifest.json").read_text()[:40])
    assert damage(newest) is not None
    sink = ListSink()
    resumed = fit(request(tmp_path / "ck"), sink=sink, device=CPU)
    said = [event.text for event in sink.events if isinstance(event, Message)]
    assert any("e00003-w00000000 is damaged" in text for text in said)
    assert any("goes on from checkpoint e00002" in text for text in said)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_only_damaged_checkpoints_start_anew_and_say_so(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.write("e00000-w00000001", tiny(), None)
    (tmp_path / "e00000-w00000001" / "state.json").write_text("{}")
    name, problems = folder.newest_valid()
    assert name is None
    assert "state.json missing or changed" in problems[0]
    with pytest.raises(CheckpointError, match=r"state\.json"):
        folder.read("e00000-w00000001")


def test_replaced_attempt_can_no_longer_write(tmp_path: Path) -> None:
    old = folder_at(tmp_path)
    old.write("e00000-w00000001", tiny(), None)
    new = folder_at(tmp_path)
    with pytest.raises(CheckpointError, match="taken over"):
        old.write("e00000-w00000002", tiny(), None)
    assert new.names() == ["e00000-w00000001"]
    new.write("e00000-w00000002", tiny(), None)


def test_attempt_replaced_in_the_middle_of_a_write_neither_ends_it_nor_harms_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are at the same position: a shared temporary name would let the old one remove the new one's files."""
    old, new = folder_at(tmp_path), CheckpointFolder(tmp_path, CheckpointSpec(), BestSpec())
    plain = safetensors.torch.save_file

    def replaced_meanwhile(tensors: dict, path: Path) -> None:
        monkeypatch.setattr(safetensors.torch, "save_file", plain)
        plain(tensors, path)
        new.take_over()
        new.write("e00000-w00000001", tiny(2.0), None)

    monkeypatch.setattr(safetensors.torch, "save_file", replaced_meanwhile)
    with pytest.raises(CheckpointError, match="taken over"):
        old.write("e00000-w00000001", tiny(1.0), None)
    assert new.newest_valid() == ("e00000-w00000001", [])
    assert torch.equal(new.read("e00000-w00000001").tensors["model"]["w"], torch.full((4,), 2.0))
    assert not list(tmp_path.glob("*.partial"))


def test_replaced_attempt_of_a_fit_ends_at_its_next_checkpoint(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 16, dtype="FP32")
    request = request_for(
        prepared, batch=8, micro=8, arguments={"double": False}, epochs=4, checkpoints=tmp_path / "ck"
    )

    def replace_after_two(event: EpochFinished) -> bool:
        if event.epoch == 2:
            folder_at(tmp_path / "ck")
        return False

    with pytest.raises(CheckpointError, match="taken over"):
        fit(request, sink=ListSink(), device=CPU, on_epoch=replace_after_two)
    assert folder_at(tmp_path / "ck").names() == ["e00001-w00000000"]


def test_a_stopped_process_that_holds_the_lock_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_at(tmp_path)
    monkeypatch.setattr(checkpoint_module, "LOCK_WAIT_S", 0.1)
    with folder._alone(), pytest.raises(CheckpointError, match="may be stopped"):
        folder_at(tmp_path)


@pytest.mark.parametrize(("mode", "kept"), [("min", (2, 4)), ("max", (3, 5))])
def test_top_k_follows_the_mode(tmp_path: Path, mode: str, kept: tuple[int, int]) -> None:
    folder = CheckpointFolder(
        tmp_path, CheckpointSpec(keep_best=2), BestSpec.model_validate({"metric": "m", "mode": mode})
    )
    folder.take_over()
    for epoch, value in enumerate([0.5, 0.2, 0.9, 0.3, 0.8, 0.6, 0.55], start=1):
        folder.write(f"e{epoch:05d}-w00000000", tiny(), value)
    assert sorted(folder.names()) == [f"e{epoch:05d}-w00000000" for epoch in sorted({*kept, 6, 7})]


def test_last_and_best_are_kept_and_the_rest_is_removed(tmp_path: Path) -> None:
    folder = folder_at(tmp_path, keep_last=2, keep_best=2)
    for epoch, value in enumerate([0.5, 0.2, 0.9, 0.3, 0.8, float("nan")], start=1):
        folder.write(f"e{epoch:05d}-w00000000", tiny(), value)
    assert folder.names() == [f"e{epoch:05d}-w00000000" for epoch in (6, 5, 4, 2)]


def test_leftovers_of_a_crash_are_neither_read_nor_kept(tmp_path: Path) -> None:
    partial = tmp_path / "e00009-w00000000.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    folder = folder_at(tmp_path)
    assert folder.names() == []
    assert not partial.exists()


def test_disk_full_stops_clearly_and_the_last_good_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a real full disk is tests/integration/train_tests/test_disk.py; this one holds everywhere.

    safetensors has an error of its own for it, which is no OSError: seen on a full tmpfs.
    """
    folder = folder_at(tmp_path)
    folder.write("e00000-w00000001", tiny(), None)

    def full(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DiskFullError):
        folder.write("e00000-w00000002", tiny(), None)
    assert folder.newest_valid() == ("e00000-w00000001", [])
    assert not list(tmp_path.glob("*.partial"))


def test_floats_survive_json() -> None:
    value = {"a": [1.0, float("inf")], "b": {"c": float("-inf")}}
    assert decode_floats(encode_floats(value)) == value
    assert decode_floats(encode_floats(float("nan"))) != decode_floats(encode_floats(float("nan")))
