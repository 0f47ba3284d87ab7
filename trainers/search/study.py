"""Which configuration comes next, and which was best: ask, report, end. Optuna's TPE under the BOHB rule.

A model that mixes values measured after 2 and after 50 epochs is misled at larger budgets (benchmarks/search: the
regret of TPE + ASHA is higher than that of TPE alone when early-stopped values count as final). So there is
one Optuna study a rung, each holding only values measured at that rung, and a proposal comes from the highest rung
that has enough points (Falkner et al. 2018, BOHB, arXiv 1807.01774, section 3.2), never from the first: what is
best after two epochs of 52 misleads more than chance does (benchmarks/search, `manta` against `manta-first-rung`).

Invariants
* A proposal is a pure function of (seed, trial number, what was reported before): the sampler is made anew for each.
* A trial that ran out of memory or diverged counts as PRUNED, never FAIL: the model learns to stay away.
* No configuration is proposed twice.
* After a restart the study is rebuilt from the journal by the same calls that built it.

Covered: proposals, rung values, the winner. Not covered: who runs trials (ray_tune.py), when one stops (schedulers.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState as OptunaState

from trainers.search.journal import Journal, Trial, TrialState
from trainers.search.quasi_random import grid, quasi_random
from trainers.search.space import contains, decode, encode

MIN_POINTS_BEYOND_DIMENSIONS = 3  # 10 points for LCBench's 7 dimensions (benchmarks/search), 5 for two
Direction = Literal["minimize", "maximize"]
REDRAWS = 20  # a discrete space may be proposed again; after so many repeats it counts as exhausted


@dataclass(frozen=True)
class StudySettings:
    """What a study needs to know of a search."""

    space: Mapping[str, BaseDistribution]
    mode: Literal["min", "max"]
    seed: int
    rungs: tuple[int, ...]
    """Epochs at which values are compared, ascending; the last is that of a whole trial."""
    start: tuple[tuple[str, dict[str, Any]], ...] = ()
    """(source, values) of the first trials."""
    first_modeled: int = 1
    """Index of the lowest rung that a model may be made of; a single rung is always modeled."""

    @property
    def min_points(self) -> int:
        """Points that a rung needs before a model is made of it."""
        return len(self.space) + MIN_POINTS_BEYOND_DIMENSIONS


class Study:
    """Ask, report, end. Not thread-safe: one caller."""

    def __init__(self, settings: StudySettings, journal: Journal) -> None:
        self.settings = settings
        self.trials: list[Trial] = []
        self._journal = journal
        direction: Direction = "minimize" if settings.mode == "min" else "maximize"
        self._rungs = {rung: _quiet_study(direction) for rung in settings.rungs}
        self._unfinished: list[Trial] = []

    def ask(self) -> Trial | None:
        """The next trial to run, or None when every configuration of a discrete space was proposed."""
        if self._unfinished:
            return self._unfinished.pop(0)
        number = len(self.trials)
        if number < len(self.settings.start):
            source, values = self.settings.start[number]
        else:
            found = self._propose(number)
            if found is None:
                return None
            source, values = found
        trial = Trial(number, dict(values), source)
        self._journal.asked(trial)
        self._add(trial)
        return trial

    def report(self, number: int, epoch: int, value: float, metrics: Mapping[str, float] | None = None) -> None:
        """A trial's finite value after an epoch. A second report of the same epoch is left out."""
        trial = self.trials[number]
        if epoch in trial.reports or trial.ended:
            return
        if not math.isfinite(value):
            raise ValueError(f"trial {number} reported {value}: end it as diverged instead")
        finite = {key: item for key, item in (metrics or {}).items() if math.isfinite(item)}
        self._journal.reported(number, epoch, value, finite)
        self._record(trial, epoch, value, finite)

    def end(self, number: int, state: TrialState, note: str = "") -> None:
        """The one final state of a trial; a second end is left out."""
        trial = self.trials[number]
        if trial.ended:
            return
        trial.state, trial.note = state, note
        self._journal.ended(trial)
        self._close(trial)

    def replay(self, trials: Iterable[Trial]) -> None:
        """Rebuild from a journal. Trials without an end are proposed again first, with the same number."""
        for old in trials:
            trial = Trial(old.number, old.values, old.source)
            self._add(trial)
            for epoch, value in sorted(old.reports.items()) if old.ended else ():
                self._record(trial, epoch, value, old.metrics.get(epoch, {}))
            if old.ended:
                trial.state, trial.note = old.state, old.note
                self._close(trial)
            else:
                self._unfinished.append(trial)

    def best(self) -> Trial | None:
        """The trial with the best value among those that ran to the end; among all when none did."""
        return next(iter(self.ranked()), None)

    def ranked(self) -> list[Trial]:
        """Whole trials, the best value first; stopped ones when no trial was whole."""
        finite = [trial for trial in self.trials if trial.reports and trial.state in ("done", "stopped", "running")]
        whole = [trial for trial in finite if trial.state == "done"]
        return sorted(whole or finite, key=lambda trial: self._cost(self.best_value(trial)))

    def best_value(self, trial: Trial) -> float:
        """Best reported value: training keeps the weights of its best epoch too."""
        return trial.reports[self.best_epoch(trial)]

    def best_epoch(self, trial: Trial) -> int:
        return min(trial.reports, key=lambda epoch: (self._cost(trial.reports[epoch]), epoch))

    def _cost(self, value: float) -> float:
        return value if self.settings.mode == "min" else -value

    def _propose(self, number: int) -> tuple[str, dict[str, Any]] | None:
        """Values from the highest rung with enough points, else the next quasi-random ones."""
        modeled = self.settings.rungs[self.settings.first_modeled :] or self.settings.rungs
        enough = [rung for rung in modeled if self._num_points(rung) >= self.settings.min_points]
        for redraw in range(REDRAWS):
            values = self._modeled(enough[-1], number, redraw) if enough else self._drawn(number + redraw)
            if self._is_new(values):
                return f"tpe@{enough[-1]}" if enough else "quasi-random", values
        left = (_decoded(values) for values in grid(self.settings.space))
        return next((("grid", values) for values in left if self._is_new(values)), None)

    def _modeled(self, rung: int, number: int, redraw: int) -> dict[str, Any]:
        study = self._rungs[rung]
        study.sampler = _sampler(self.settings.seed, number, redraw, self.settings.min_points)
        asked = study.ask(dict(self.settings.space))
        study.tell(asked, state=OptunaState.FAIL)  # only its values are used; FAIL is not modeled
        return _decoded(asked.params)

    def _drawn(self, index: int) -> dict[str, Any]:
        return _decoded(quasi_random(self.settings.space, self.settings.seed, index))

    def _is_new(self, values: dict[str, Any]) -> bool:
        return all(values != trial.values for trial in self.trials)

    def _num_points(self, rung: int) -> int:
        return sum(rung in trial.reports for trial in self.trials)

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)

    def _record(self, trial: Trial, epoch: int, value: float, metrics: dict[str, float]) -> None:
        trial.reports[epoch] = value
        trial.metrics[epoch] = metrics
        if epoch in self._rungs:
            self._tell(epoch, trial, OptunaState.COMPLETE, value)

    def _close(self, trial: Trial) -> None:
        if trial.state in ("diverged", "oom"):
            for rung in self._rungs:
                if rung not in trial.reports:
                    self._tell(rung, trial, OptunaState.PRUNED, None)

    def _tell(self, rung: int, trial: Trial, state: OptunaState, value: float | None) -> None:
        """Add a point to a rung's study, if it lies in the space (the user's own configuration need not)."""
        space = self.settings.space
        if not all(contains(space[path], value_at) for path, value_at in trial.values.items()):
            return
        values = {path: encode(trial.values[path]) for path in space}
        self._rungs[rung].add_trial(
            optuna.trial.create_trial(state=state, value=value, params=values, distributions=dict(space))
        )


def _decoded(params: Mapping[str, Any]) -> dict[str, Any]:
    return {path: decode(value) for path, value in params.items()}


def _sampler(seed: int, number: int, redraw: int, min_points: int) -> TPESampler:
    """Every argument whose default has changed is pinned, so that an upgrade cannot change a search."""
    return TPESampler(
        seed=_mix(seed, number, redraw),
        n_startup_trials=min_points,
        n_ei_candidates=24,
        multivariate=True,
        group=False,
        constant_liar=False,
    )


def _mix(*parts: int) -> int:
    """One 32-bit seed from several small integers."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _quiet_study(direction: Direction) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction=direction, sampler=TPESampler(seed=0), pruner=optuna.pruners.NopPruner())
