"""A Ray that starts in a thread: who leaves before it stands does not wait, and it is ended all the same."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.pipeline.ray_thread import RayThread, still_starting
from cluster.pipeline.stage import StageContext

TIMEOUT_S = 20.0


class SlowRay:
    """In the place of a session: it stands when `allowed` is set."""

    def __init__(self) -> None:
        self.begun, self.allowed, self.ended = threading.Event(), threading.Event(), threading.Event()

    @contextmanager
    def session(self, address: str | None, *, logs: Path) -> Iterator[str]:
        self.begun.set()
        assert self.allowed.wait(TIMEOUT_S)
        yield "session"
        self.ended.set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowRay:
    ray = SlowRay()
    monkeypatch.setattr("cluster.runtime.session.ray_session", ray.session)
    return ray


def test_who_leaves_while_ray_starts_does_not_wait_and_the_thread_ends_it(slow: SlowRay, tmp_path: Path) -> None:
    with RayThread(None, logs=tmp_path) as ray:
        ray.start()
        assert slow.begun.wait(TIMEOUT_S)
    assert still_starting()
    assert not slow.ended.is_set()
    slow.allowed.set()
    assert slow.ended.wait(TIMEOUT_S)


def test_a_ray_that_stands_ends_with_the_block(slow: SlowRay, tmp_path: Path) -> None:
    slow.allowed.set()
    with RayThread(None, logs=tmp_path) as ray:
        assert ray.ready()
        assert ray.stands
        assert not slow.ended.is_set()
    assert slow.ended.is_set()


def test_what_starting_raised_is_raised_where_ray_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(address: str | None, *, logs: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr("cluster.runtime.session.ray_session", refuse)
    with RayThread("10.0.0.1:6379", logs=tmp_path) as ray:
        assert not ray.private
        with pytest.raises(OSError, match="no room"):
            ray.ready()


def test_a_block_that_starts_none_ends_none(slow: SlowRay, tmp_path: Path) -> None:
    with RayThread(None, logs=tmp_path) as ray:
        assert ray.private
    assert not slow.begun.is_set()


def test_a_context_travels_without_what_starts_ray(tmp_path: Path) -> None:
    """Ray Tune pickles the search stage's listeners, which hold it."""
    given: dict[str, Any] = dict.fromkeys(("run", "spec", "resolved", "host", "events"))
    with RayThread(None, logs=tmp_path) as ray:
        context = StageContext(stage="search", folder=tmp_path, digest="d", records={}, ensure_ray=ray.ready, **given)
        assert pickle.loads(pickle.dumps(context)).ensure_ray()
