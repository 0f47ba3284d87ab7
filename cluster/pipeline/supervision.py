"""A driver that nobody watches over, or that another one has replaced, ends itself and what it started.

    manta run ── write end of a pipe ──► driver     closed without a word: whoever started the run is gone
    RUN/fence/                                      a higher number than one's own: another driver works here
    RUN/stop.json                                   one's own number: somebody, on any host, asks it to end

Invariant: within `POLL_S + ORPHAN_GRACE_S` (7 s) of the first two this process is gone, and with it what ends with its
driver: training processes (by their pipe), a private Ray (by its reaper), the actors that it has on a cluster (by Ray).
A replaced driver writes nothing more; the two others end as by SIGTERM, with a last checkpoint where there is time.

Covered: kill -9 of `manta run` and of whatever started that, a stop from another host, two drivers. Not covered: what
`manta run --keep` leaves behind on purpose, which `Leash.release` lets stay.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable
from types import TracebackType

from cluster.store.fence import Fence

LOG = logging.getLogger(__name__)
POLL_S = 1.0
ORPHAN_GRACE_S = 6.0  # for a last checkpoint; a small one takes a tenth of a second
STOP_GRACE_S = 45.0  # below the 60 s for which 'manta stop' waits
STAY = b"s"
ORPHANED = "whatever started this run is gone without a word: the run ends, too"
ASKED = "somebody asks this run to stop"


class Leash:
    """The starter's end: the driver lives no longer than it, unless it is released."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()

    def handed_over(self) -> None:
        """The driver has its end: close ours."""
        os.close(self.read_end)

    def cut(self) -> None:
        """Let the driver end, before this process does."""
        os.close(self._write_end)

    def release(self) -> None:
        """The driver may outlive this process."""
        os.write(self._write_end, STAY)


class Supervision:
    """A thread of the driver. A context manager."""

    def __init__(self, fence: Fence, leash: int | None, say: Callable[[str], None]) -> None:
        """`leash`: descriptor of the pipe's read end; None for a driver that nobody watches over."""
        self._fence, self._leash, self._say = fence, leash, say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervision", daemon=True)

    def __enter__(self) -> Supervision:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.is_set():
            if not self._fence.holds():
                LOG.error("another driver has taken this run over: this one ends")
                leave()
            if self._fence.asked_to_stop():
                self._end(ASKED, STOP_GRACE_S)
            elif self._broken():
                self._end(ORPHANED, ORPHAN_GRACE_S)

    def _broken(self) -> bool:
        """Whether the leash has ended. Blocks for `POLL_S`."""
        if self._leash is None:
            self._over.wait(POLL_S)
            return False
        ready, _, _ = select.select([self._leash], [], [], POLL_S)
        if not ready:
            return False
        if os.read(self._leash, 1) == STAY:
            self._leash = None
            return False
        return True

    def _end(self, why: str, grace_s: float) -> None:
        """As by SIGTERM, which the main thread handles; where that does not end it in time, at once. Blocks."""
        LOG.warning("%s", why)
        self._say(why)
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._over.wait(grace_s):
            LOG.error("%s; it has not ended by itself within %g s", why, grace_s)
            leave()


def leave() -> None:
    """End this process at once: what is on disk is whole at any moment."""
    logging.shutdown()
    os._exit(1)
