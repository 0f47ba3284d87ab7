"""The share of requests that a new version answers beside the serving one, and when it gets no more of them.

Each replica decides for itself, by what it has seen since the canary came: a canary that fails more often than the
stable version, or takes more than twice as long, gets no further request in this replica, whether anybody watches or
not. Its reason is in the repository index; `manta rollback` takes it away, a new canary starts anew.

Invariant: of the requests that name no version exactly `percent` in a hundred go to the canary, evenly spread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from serve.models.model import ServedModel

REQUESTS_MIN = 20  # of the canary, before it is judged
FAILED_SHARE_MORE = 0.06  # of its requests, above the stable version's share: one chance failure of 20 is 0.05
LATENCY_TIMES, LATENCY_MORE_S = 2.0, 0.005  # of the 95th percentile; differences below 5 ms are those of cold caches
WINDOW_S = 60.0
JUDGE_EVERY_S = 1.0


class Canary:
    """A canary in one replica. Belongs to one event loop."""

    def __init__(self, model: ServedModel, stable: ServedModel, percent: float) -> None:
        self.model, self.stable, self.percent = model, stable, percent
        self.stopped = ""
        """Why it gets no more requests; empty while it does."""
        self._owed = 0.0
        self._judged_s = time.monotonic()
        self._before = {each.version: dict(each.statistics.outcomes) for each in (model, stable)}

    @property
    def summary(self) -> str:
        """For the index."""
        return f"canary, stopped: {self.stopped}" if self.stopped else f"canary, {self.percent:g} % of the requests"

    def takes(self) -> bool:
        """Whether the next request is the canary's."""
        now_s = time.monotonic()
        if now_s - self._judged_s > JUDGE_EVERY_S and not self.stopped:
            self._judged_s = now_s
            self.stopped = self._why_worse()
        if self.stopped:
            return False
        self._owed += self.percent
        if self._owed < 100:
            return False
        self._owed -= 100
        return True

    def _why_worse(self) -> str:
        mine, others = self._since(self.model), self._since(self.stable)
        failed, asked = mine["failed"], mine["failed"] + mine["success"]
        if asked < REQUESTS_MIN:
            return ""
        others_asked = max(1, others["failed"] + others["success"])
        if failed / asked > others["failed"] / others_asked + FAILED_SHARE_MORE:
            return f"{failed} of its {asked} requests failed, {others['failed']} of the stable version's {others_asked}"
        taken_s = self.model.statistics.recent_latency_s(WINDOW_S, REQUESTS_MIN)
        usual_s = self.stable.statistics.recent_latency_s(WINDOW_S, REQUESTS_MIN)
        if usual_s and taken_s > usual_s * LATENCY_TIMES + LATENCY_MORE_S:
            return f"its 95th percentile is {taken_s * 1e3:.1f} ms, the stable version's {usual_s * 1e3:.1f} ms"
        return ""

    def _since(self, model: ServedModel) -> Mapping[str, int]:
        before = self._before[model.version]
        return {name: model.statistics.outcomes[name] - before.get(name, 0) for name in ("failed", "success")}
