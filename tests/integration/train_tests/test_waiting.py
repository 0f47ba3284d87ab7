"""Workers without room wait, say for what, and are no lost workers; where there never will be room, that is said."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cluster.errors import ResourceError
from cluster.telemetry.events import Message, Progress, read_events
from tests.e2e.cluster_tests.head import wait_for
from tests.unit.loop_tests.rig import request_for, write_data
from trainers.launch.capacity import free_slots, total_slots
from trainers.launch.fit import launch_fit
from trainers.launch.ready_workers import ReadyWorkers

WAIT_S = 250.0


@pytest.mark.slow  # 25 s: Ray Train starts twice
@pytest.mark.timeout(400)
def test_waiting_costs_no_restarts_has_no_end_and_is_said(
    ray_local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "4")  # Ray Train stops waiting, and waits anew
    total, deadline = total_slots({"CPU": 1}), time.monotonic() + 20  # what tests before have killed may hold some
    wait_for(lambda: free_slots({"CPU": 1}) == total or time.monotonic() > deadline, 60)
    held = placement_group([{"CPU": 1}] * (free_slots({"CPU": 1}) - 1), name="held")
    assert held.wait(60)
    wait_for(lambda: free_slots({"CPU": 1}) == 1, 60)
    write_data(tmp_path / "data", 24)
    request = request_for(tmp_path / "data", batch=12, micro=6, workers=2, epochs=1, faults={"worker_restarts": 0})
    events = tmp_path / "events.jsonl"

    def free() -> None:
        wait_for(lambda: any("goes on waiting" in text for text in said(events)), WAIT_S)
        remove_placement_group(held)

    thread = threading.Thread(target=free, daemon=True)
    thread.start()
    result = launch_fit(request, events=events, folder=tmp_path / "out")
    thread.join(WAIT_S)
    assert result.updates == 2
    needs = [text for text in said(events) if text.startswith("waiting: needs room for 2 workers (1 CPU each)")]
    # a task that ends holds its CPU for a moment: what is said first may be less
    assert any(f"free now: for 1, in all: for {total}" in text for text in needs), needs


def test_more_workers_than_a_private_ray_can_hold_are_refused(ray_local: str, tmp_path: Path) -> None:
    total = total_slots({"CPU": 1})
    write_data(tmp_path / "data", 24)
    request = request_for(tmp_path / "data", batch=total + 1, micro=1, workers=total + 1, epochs=1)
    with pytest.raises(ResourceError, match=f"room for {total} workers .* asks for {total + 1}"):
        launch_fit(request, events=tmp_path / "e.jsonl", folder=tmp_path / "out", ready=ReadyWorkers(alone=True))


def said(events: Path) -> list[str]:
    return [event.text for event in read_events(events) if isinstance(event, Message | Progress)]
