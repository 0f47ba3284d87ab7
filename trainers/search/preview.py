"""What a search will cost, before it starts: trials, epochs, updates. Pure arithmetic on the spec."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.spec.resolve import HostFacts, ResolvedRun
from cluster.spec.search import SearchSpec
from cluster.spec.search_rules import trial_epochs
from trainers.search.schedulers import rungs_of


@dataclass(frozen=True)
class SearchPreview:
    """Bounds of a search's cost."""

    trials: int
    concurrency: int
    epochs_per_trial: int
    epochs_min: int
    """Every trial but the first stopped at the first rung."""
    epochs_expected: int
    """1 / reduction_factor of the trials of each rung go on to the next."""
    epochs_max: int
    """No trial stopped; with repeats."""
    samples_max: int

    def sentence(self) -> str:
        """One line for people."""
        span = f"{self.epochs_min} to {self.epochs_max}" if self.epochs_min < self.epochs_max else f"{self.epochs_max}"
        about = f", about {self.epochs_expected} when trials stop early" if self.epochs_min < self.epochs_max else ""
        at_once = f"{self.concurrency} at a time"
        return f"{self.trials} trials, {at_once}: {span} epochs{about}; at most {self.samples_max:,} samples"


def preview_search(resolved: ResolvedRun, search: SearchSpec, host: HostFacts) -> SearchPreview:
    """Bounds for a resolved run."""
    epochs = trial_epochs(resolved.spec, search)
    rungs = rungs_of(epochs, search.grace_epochs, search.reduction_factor, search.scheduler)
    repeats = 2 * search.repeats * epochs
    expected, alive, before = 0.0, float(search.trials), 0
    for rung in rungs:
        expected += alive * (rung - before)
        alive, before = max(1.0, alive / search.reduction_factor), rung
    most = search.trials * epochs + repeats
    return SearchPreview(
        trials=search.trials,
        concurrency=trial_concurrency(search, host),
        epochs_per_trial=epochs,
        epochs_min=min(most, epochs + (search.trials - 1) * rungs[0] + repeats),
        epochs_expected=min(most, math.ceil(expected) + repeats),
        epochs_max=most,
        samples_max=most * resolved.data.num_rows_train,
    )


def trial_concurrency(search: SearchSpec, host: HostFacts) -> int:
    """Trials at a time: one a GPU, else one a CPU core; more would wait for each other."""
    most = len(host.gpus) or host.cpu_cores
    wanted = most if search.concurrency == "auto" else search.concurrency
    return max(1, min(wanted, search.trials))
