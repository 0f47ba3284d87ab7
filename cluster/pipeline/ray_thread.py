"""A Ray session that starts in a thread, so that checking and preparing data and starting Ray take the time of one.

Invariant: a run that ends while Ray is still starting does not wait for it, unless something else does: the early start
of Ray Serve (early_start.py), which the run's end waits for. The thread ends what it has started; where the process
ends first (at once, where `still_starting`), the reaper does (cluster/runtime/private/reaper.py).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.runtime.session import RaySession


NAME = "ray-start"


def still_starting() -> bool:
    """Whether a run of this process has ended before its Ray stood."""
    return any(thread.name == NAME for thread in threading.enumerate())


class RayThread:
    """`start()` begins, `ready()` waits and raises what starting raised, leaving the context shuts Ray down."""

    def __init__(self, address: str | None, *, logs: Path) -> None:
        """`address`: of the cluster that the run uses; None for a Ray of its own."""
        self._address = address
        self._logs = logs
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._session: RaySession | None = None
        self._handover = threading.Lock()
        self._left = False
        """Whether the context was left before Ray stood: then the thread closes the session."""
        self._over = False
        """Whether the thread has done its work."""

    @property
    def private(self) -> bool:
        """Whether the run's Ray, if it starts one, ends with the run; a cluster's outlives it, with endpoints on it."""
        return self._address is None

    @property
    def begun(self) -> bool:
        """Whether it has been started."""
        return self._thread is not None

    @property
    def stands(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._session is not None

    def start(self) -> None:
        """Begin to start or attach to Ray; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._open, name=NAME, daemon=True)
            self._thread.start()

    def ready(self) -> bool:
        """Block until Ray stands; True. Raises what starting it raised."""
        self.start()
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error
        return True

    def _open(self) -> None:
        try:
            from cluster.runtime.session import ray_session  # imports ray: a run that needs none does without

            self._session = self._stack.enter_context(ray_session(self._address, logs=self._logs))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
        with self._handover:
            self._over = True
        if self._left:
            self._stack.close()

    def __enter__(self) -> RayThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._handover:
            self._left = self._thread is not None and not self._over
        if not self._left:
            self._stack.close()
