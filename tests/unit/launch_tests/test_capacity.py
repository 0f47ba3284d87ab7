"""Room for workers in a Ray session, counted without Ray."""

from __future__ import annotations

import itertools

from cluster.runtime.ray_private import GroupOfJob
from trainers.launch.capacity import count_slots, wait_for_slots, waiting_text


def test_room_is_counted_by_node_because_a_worker_does_not_straddle_two() -> None:
    free = {"a": {"CPU": 1.5, "GPU": 2.0}, "b": {"CPU": 2.5}, "c": {}}
    assert count_slots(free, {"CPU": 1}) == 3, "the sum would say 4"
    assert count_slots(free, {"CPU": 1, "GPU": 1}) == 1


def test_all_room_is_taken_at_once_and_less_only_after_the_wait() -> None:
    assert wait_for_slots(1, 4, 60.0, lambda: 9) == 4
    looks = itertools.chain([1, 2, 4], itertools.repeat(0))
    assert wait_for_slots(1, 4, 60.0, lambda: next(looks)) == 4, "a place that comes back in time is waited for"
    assert wait_for_slots(2, 4, 0.0, lambda: 3) == 3
    said: list[int] = []
    looks = itertools.chain([1, 0, 1, 2], itertools.repeat(0))
    assert wait_for_slots(2, 4, 0.0, lambda: next(looks), said.append) == 2
    assert said == [1, 0, 1], "room for the least is waited for without end, and said"


def test_a_wait_is_said_in_words() -> None:
    each = {"CPU": 1.0, "GPU": 1.0}
    others = [GroupOfJob("a", False, 2), GroupOfJob("a", False, 1), GroupOfJob("b", True, 4), GroupOfJob("c", False, 1)]
    assert waiting_text(4, each, 1, 6, others) == (
        "waiting: needs room for 4 workers (1 CPU and 1 GPU each); free now: for 1, in all: for 6; "
        "run a holds 3; run c holds 1; b waits, too"
    )
    assert waiting_text(1, {"CPU": 1.0}, 0, 0).endswith(
        "1 worker (1 CPU each); free now: for 0, in all: for 0, so that hosts must join or train.workers be lowered"
    )
