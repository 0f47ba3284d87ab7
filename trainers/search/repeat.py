"""Train the best points again with other seeds: is the winner better, or was it lucky?

Invariant: seeds are `seed + 1 … seed + repeats`, the same for each finalist, so that their difference is not that of
their seeds; what was repeated before an interruption is not run again.

Covered: the two best whole trials, mean and 95 % t-interval. Not covered: a test of their difference (with three
seeds it would decide next to nothing).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ray.tune.search import Searcher

from cluster.telemetry.events import append_line
from trainers.search.journal import Trial
from trainers.search.schedulers import TIME, VALUE
from trainers.search.trial_failures import MEMORY_NOTE, killed_for_memory

FINALISTS = 2
CONFIDENCE = 0.95


@dataclass
class Repeat:
    """One finalist under one seed."""

    trial: Trial
    seed: int
    reports: dict[int, float] = field(default_factory=dict)
    state: str = "running"
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.trial.number}/{self.seed}"


@dataclass(frozen=True)
class Finalist:
    """A point under several seeds."""

    trial: Trial
    values: tuple[float, ...]
    """Best value under the run's own seed first, then under the others; seeds that ended badly are left out."""
    spoiled: int = 0
    """Seeds under which it diverged or ran out of memory."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def interval(self) -> tuple[float, float]:
        """95 % t-interval of the mean over seeds; the mean twice for a single value."""
        if len(self.values) < 2:
            return self.mean, self.mean
        from scipy.stats import t

        half = t.ppf((1 + CONFIDENCE) / 2, len(self.values) - 1) * statistics.stdev(self.values)
        half /= math.sqrt(len(self.values))
        return self.mean - half, self.mean + half

    def facts(self) -> dict[str, Any]:
        low, high = self.interval()
        facts = {"trial": self.trial.number, "values": list(self.values), "mean": self.mean, "low": low, "high": high}
        return {**facts, "spoiled": self.spoiled} if self.spoiled else facts


class RepeatSearcher(Searcher):
    """Hands Tune the repeats that are left, in order."""

    def __init__(self, repeats: Sequence[Repeat], path: Path, listen: Callable[[Repeat], None], mode: str) -> None:
        super().__init__(metric=VALUE, mode=mode)
        self._left = [repeat for repeat in repeats if repeat.state == "running"]
        self._path = path
        self._listen = listen
        self._of: dict[str, Repeat] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if not self._left:
            finished: Any = Searcher.FINISHED  # a text, by Tune's protocol
            return cast("dict[str, Any] | None", finished)
        repeat = self._of[trial_id] = self._left.pop(0)
        self._listen(repeat)
        return {"values": repeat.trial.values, "number": repeat.trial.number, "seed": repeat.seed}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._take(self._of[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        repeat = self._of[trial_id]
        if result and not error:
            self._take(repeat, result)
        if repeat.state == "running" and killed_for_memory():
            repeat.state, repeat.note = "oom", MEMORY_NOTE
        elif repeat.state == "running":
            repeat.state = "failed" if error or not result else "done"
        append_line(self._path, json.dumps({"key": repeat.key, "state": repeat.state, "reports": repeat.reports}))
        self._listen(repeat)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the file of repeats is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save."""

    def _take(self, repeat: Repeat, result: dict[str, Any]) -> None:
        if result.get("outcome"):
            repeat.state, repeat.note = str(result["outcome"]), str(result.get("note", ""))
        elif result[TIME] not in repeat.reports:
            repeat.reports[int(result[TIME])] = float(result[VALUE])
            self._listen(repeat)


def plan_repeats(finalists: Sequence[Trial], seed: int, count: int, path: Path) -> list[Repeat]:
    """All repeats, those on record in `path` with their results."""
    repeats = [Repeat(trial, seed + offset) for trial in finalists for offset in range(1, count + 1)]
    known = {}
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        known = {entry["key"]: entry for entry in (json.loads(line) for line in lines if line.endswith("\n"))}
    for repeat in repeats:
        if repeat.key in known:
            repeat.state = known[repeat.key]["state"]
            repeat.reports = {int(epoch): value for epoch, value in known[repeat.key]["reports"].items()}
    return repeats


def rank_finalists(finalists: Sequence[Trial], repeats: Sequence[Repeat], mode: str) -> list[Finalist]:
    """Finalists with their values, the best mean first. Each value is that of the best epoch.

    One that diverged under more seeds than another comes after it: the mean of the seeds it survived would praise it.
    """
    best = min if mode == "min" else max
    ranked = []
    for trial in finalists:
        values = [best(trial.reports.values())]
        values += [best(r.reports.values()) for r in repeats if r.trial is trial and r.state == "done" and r.reports]
        spoiled = sum(r.trial is trial and r.state in ("diverged", "oom") for r in repeats)
        ranked.append(Finalist(trial, tuple(values), spoiled))
    sign = 1 if mode == "min" else -1
    return sorted(ranked, key=lambda finalist: (finalist.spoiled, sign * finalist.mean))
