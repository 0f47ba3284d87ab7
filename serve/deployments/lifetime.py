"""How long a process keeps its private Ray: until no endpoint is left, and whoever took the last one away has left too.

`manta undeploy` drops the endpoint's record after it has left the Ray. A Ray that ended under it, a moment after the
endpoint was gone, would leave it waiting for a dead cluster. Invariant: an undeploy that was killed before it dropped
the record delays the end by `FAREWELL_S`, no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FAREWELL_S = 30.0


class RayLifetime:
    """Of the process that started a private Ray. `served`: an endpoint is left; `recorded`: a record is left."""

    def __init__(
        self, served: Callable[[], bool], recorded: Callable[[], bool], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._served, self._recorded, self._now = served, recorded, now
        self._gone_s: float | None = None

    def is_needed(self) -> bool:
        """Whether the Ray is still needed; call it every few seconds."""
        if self._served():
            self._gone_s = None
            return True
        if self._gone_s is None:
            self._gone_s = self._now()
        return self._recorded() and self._now() - self._gone_s < FAREWELL_S
