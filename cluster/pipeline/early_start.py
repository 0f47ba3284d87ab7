"""What a later stage needs, started while earlier ones work: training's workers, serving's controller and proxy.

Invariant: this is best effort. What cannot be started early is started by its stage, which says what is wrong; what no
stage has taken ends with the run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

LOG = logging.getLogger(__name__)
JOIN_TIMEOUT_S = 60.0  # Ray Serve's own limit for its start is below this


@dataclass
class _Start:
    make: Callable[[], Any]
    thread: threading.Thread | None = None
    made: Any = None

    def run(self) -> None:
        try:
            self.made = self.make()
        except Exception as error:  # noqa: BLE001 - the stage tries again and says what is wrong
            LOG.info("not started early: %s: %s", type(error).__name__, error)


@dataclass
class EarlyStarts:
    """One thread for each stage that has something to start. A context manager: leaving it ends what is left."""

    _starts: dict[str, _Start] = field(default_factory=dict)

    def begin(self, stage: str, make: Callable[[], Any]) -> None:
        """Call `make` in a thread of its own; its result may have a `close()`."""
        start = _Start(make)
        start.thread = threading.Thread(target=start.run, name=f"early-{stage}", daemon=True)
        self._starts[stage] = start
        start.thread.start()

    def take(self, stage: str) -> Any:
        """What was started for a stage, for it to end; None for nothing. Blocks until it has started."""
        start = self._starts.pop(stage, None)
        if start is None or start.thread is None:
            return None
        start.thread.join(JOIN_TIMEOUT_S)
        return start.made

    def __enter__(self) -> EarlyStarts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stage in list(self._starts):
            made = self.take(stage)
            if hasattr(made, "close"):
                made.close()
