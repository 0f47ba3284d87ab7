"""A /dev/shm that is too small is an error before anything starts, and a small one is used as it is."""

from __future__ import annotations

import pytest

from cluster.errors import MemoryShortError
from cluster.runtime.private.shared_memory import (
    OBJECT_STORE_BYTES_GOAL,
    OBJECT_STORE_BYTES_MIN,
    object_store_bytes,
    shared_memory_free_bytes,
)
from cluster.runtime.session import ray_session


def test_a_large_one_gives_the_goal_and_a_small_one_what_fits() -> None:
    assert object_store_bytes(lambda: 100 << 30) == OBJECT_STORE_BYTES_GOAL
    assert object_store_bytes(lambda: 200 << 20) == 160 << 20


def test_dockers_default_of_64_mib_is_refused_with_numbers_and_a_remedy() -> None:
    with pytest.raises(MemoryShortError) as caught:
        object_store_bytes(lambda: 64 << 20)
    assert "has 64 MiB free" in caught.value.message
    assert "needs at least 94 MiB" in caught.value.message
    assert "--shm-size" in caught.value.message
    assert caught.value.exit_code == 3


def test_no_such_file_system_is_not_an_error() -> None:
    assert object_store_bytes(lambda: None) == OBJECT_STORE_BYTES_MIN


def test_the_real_reading_is_a_number() -> None:
    assert (shared_memory_free_bytes() or 0) > 0


def test_a_session_asks_before_it_starts_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.runtime.private.start.shared_memory_free_bytes", lambda: 10 << 20)
    monkeypatch.setattr("cluster.runtime.private.start.Reaper", lambda place: pytest.fail("a process was started"))
    with pytest.raises(MemoryShortError), ray_session():
        pytest.fail("the session opened")
