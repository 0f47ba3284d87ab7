"""A Ray session that starts in a thread, so that preparing data and starting Ray take the time of one of them."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.runtime.session import RaySession


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

    @property
    def private(self) -> bool:
        """Whether the run's Ray, if it starts one, ends with the run; a cluster's outlives it, with endpoints on it."""
        return self._address is None

    @property
    def stands(self) -> bool:
        """Whether there is nothing to wait for."""
        return self._session is not None

    def start(self) -> None:
        """Begin to start or attach to Ray; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._open, name="ray-start", daemon=True)
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

    def __enter__(self) -> RayThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.join()
        self._stack.close()
