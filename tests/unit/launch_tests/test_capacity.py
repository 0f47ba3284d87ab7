"""Room for workers in a Ray session, counted without Ray."""

from __future__ import annotations

import itertools

import pytest

from cluster.errors import WorkerLostError
from trainers.launch.capacity import count_slots, wait_for_slots


def test_room_is_counted_by_node_because_a_worker_does_not_straddle_two() -> None:
    free = {"a": {"CPU": 1.5, "GPU": 2.0}, "b": {"CPU": 2.5}, "c": {}}
    assert count_slots(free, {"CPU": 1}) == 3, "the sum would say 4"
    assert count_slots(free, {"CPU": 1, "GPU": 1}) == 1


def test_all_room_is_taken_at_once_and_less_only_after_the_wait() -> None:
    assert wait_for_slots(1, 4, 60.0, lambda: 9) == 4
    looks = itertools.chain([1, 2, 4], itertools.repeat(0))
    assert wait_for_slots(1, 4, 60.0, lambda: next(looks)) == 4, "a place that comes back in time is waited for"
    assert wait_for_slots(2, 4, 0.0, lambda: 3) == 3
    with pytest.raises(WorkerLostError, match=r"room for 1 workers .* train\.workers\.min is 2"):
        wait_for_slots(2, 4, 0.0, lambda: 1)
