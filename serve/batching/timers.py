"""One timer for many waits of the same length.

A timer for each request costs the event loop a heap entry that lives on after it was canceled; at thousands of
requests a second, each of which might wait 30 s, that is a tenth of the loop's work. Waits that all have one length
end in the order in which they began, so that an ordered dictionary and a single timer do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class SharedTimer(Generic[Key]):
    """Calls `late(key)` for each key that was added `delay_s` ago and not discarded. Belongs to one event loop."""

    def __init__(self, delay_s: float, late: Callable[[Key], None]) -> None:
        self._delay_s, self._late = delay_s, late
        self._due_s: dict[Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: Key) -> None:
        """Begin a wait. A key waits once at a time."""
        loop = asyncio.get_running_loop()
        self._due_s[key] = due_s = loop.time() + self._delay_s
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._look)

    def discard(self, key: Key) -> None:
        """End a wait; a key that does not wait is fine."""
        self._due_s.pop(key, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._due_s:
            key, due_s = next(iter(self._due_s.items()))
            if due_s > loop.time():
                self._timer = loop.call_at(due_s, self._look)
                return
            del self._due_s[key]
            self._late(key)
