"""The shared timer: every wait ends by itself, none is called that was discarded, one timer whatever their number."""

from __future__ import annotations

import asyncio

from serve.batching.timers import SharedTimer


def test_only_waits_that_last_are_late_and_in_their_order() -> None:
    async def test() -> list[int]:
        late: list[int] = []
        done = asyncio.Event()

        def note(key: int) -> None:
            late.append(key)
            if key == 98:
                done.set()

        timer = SharedTimer(0.02, note)
        for key in range(100):
            timer.add(key)
        for key in range(1, 100, 2):
            timer.discard(key)
        timer.discard(1)
        await asyncio.wait_for(done.wait(), 10)
        assert timer._timer is None
        return late

    assert asyncio.run(test()) == list(range(0, 100, 2))


def test_a_wait_that_began_later_ends_later() -> None:
    async def test() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        ended: dict[str, float] = {}
        done = asyncio.Event()

        def note(key: str) -> None:
            ended[key] = loop.time()
            if len(ended) == 2:
                done.set()

        timer = SharedTimer(0.05, note)
        timer.add("first")
        await asyncio.sleep(0.03)
        began_s = loop.time()
        timer.add("second")
        await asyncio.wait_for(done.wait(), 10)
        return ended["first"], ended["second"] - began_s

    first, second = asyncio.run(test())
    assert first
    assert second >= 0.05


def test_many_short_waits_leave_one_timer() -> None:
    async def test() -> int:
        timer = SharedTimer(30.0, lambda key: None)
        for key in range(1000):
            timer.add(key)
            timer.discard(key)
        return len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]

    assert asyncio.run(test()) == 1
