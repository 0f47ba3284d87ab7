"""Records of a run -> findings: over- and under-fitting, learning rate, dead units, waiting for data.

Invariant: a pure function of records; a finding quotes the numbers that it rests on, and its `change` is a dotted
path of the spec with a value, so that `--apply` writes exactly what is printed.

Covered: one training run's EpochFinished, TrainStep and Diagnostics records. Not covered: comparing runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.spec.run import RunSpec
from cluster.telemetry.current import current_records, once_each
from cluster.telemetry.events import Diagnostics, EpochFinished, Record, TrainStep, UpdateSkipped
from trainers.diagnose.reference import Reference

EPOCHS_MIN = 4  # fewer say nothing about a trend
OVERFIT_RISE = 1.15  # validation loss at the end, over its best: beyond the noise of small validation splits
UNDERFIT_FALL = 0.02  # relative fall of the training loss over the last quarter that still promises more
SPIKE = 3.0  # a logged loss this many times the median of its neighbors
UPDATE_RATIO_HIGH = 0.05  # one update changes a weight matrix by more than 5 %; about 1e-3 is usual
UPDATE_RATIO_LOW = 1e-5
ROWS_SHOWN = 10
LEAST_GAIN = 0.25  # of the loss of one answer: a network that takes off less has hardly learned
LEAST_OF_QUICK = 0.9  # of what a quick model gains over one answer
DROPOUT = 0.3  # of the common range from 0.2 to 0.5
HIDDEN_LEAST = 64  # narrower layers are a bottleneck for most tables and small images
HIDDEN_SMALL = 8
DEAD_SHARE = 0.4
DATA_WAIT_SHARE = 0.2


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that would help."""

    code: str
    text: str
    """A sentence for people."""
    evidence: dict[str, float]
    change: dict[str, Any] = field(default_factory=dict)
    """Dotted path -> value; empty where no single value is the remedy."""
    others: tuple[dict[str, Any], ...] = ()
    """Changes that may help more: `--apply` tries them all in short trainings and keeps what wins."""


def diagnose(
    records: Sequence[Record], spec: RunSpec, *, stage: str = "train", reference: Reference | None = None
) -> list[Finding]:
    """Findings, the most telling first. `spec` has no `auto` in its train section; `reference`: what is reached without
    a network."""
    records = once_each(current_records(records))
    epochs = [item for item in records if isinstance(item, EpochFinished) and item.stage == stage]
    steps = [item for item in records if isinstance(item, TrainStep) and item.stage == stage]
    looks = [item for item in records if isinstance(item, Diagnostics) and item.stage == stage]
    skipped = [item for item in records if isinstance(item, UpdateSkipped) and item.stage == stage]
    found = [
        _skipped(skipped, steps, spec),
        _learning_rate_high(steps, looks, spec),
        _learning_rate_low(looks, spec),
        _overfitting(epochs, spec),
        _learned_little(epochs, spec, reference or Reference()),
        _underfitting(epochs, spec),
        _dead_units(looks, spec),
        _data_bound(steps),
    ]
    return [finding for finding in found if finding is not None]


def findings_as_facts(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """JSON-able, for a stage's record; numbers that are not finite as text."""
    return [
        {
            **asdict(finding),
            "evidence": {name: v if math.isfinite(v) else str(v) for name, v in finding.evidence.items()},
        }
        for finding in findings
    ]


def _skipped(skipped: list[UpdateSkipped], steps: list[TrainStep], spec: RunSpec) -> Finding | None:
    """Windows that moved nothing: by their rows where these are the cause, else by the learning rate."""
    if not skipped:
        return None
    made = max((step.update for step in steps), default=0)
    text = f"{len(skipped)} of {len(skipped) + made} updates were skipped, because their gradients were not finite"
    evidence = {"skipped": float(len(skipped)), "made": float(made)}
    rows = sorted({row for item in skipped for row in item.rows})
    if rows:
        shown = ", ".join(map(str, rows[:ROWS_SHOWN])) + (", …" if len(rows) > ROWS_SHOWN else "")
        return Finding(
            "updates_skipped",
            f"{text}: rows {shown} of the train split (counted from 0) hold NaN or infinity. Each takes all rows of "
            "its window along: mend or drop them in the source.",
            {**evidence, "rows": float(len(rows))},
        )
    return Finding(
        "updates_skipped",
        f"{text}, while all inputs were finite: the network's own values overflowed.",
        evidence,
        {"train.optimizer.learning_rate": _rounded(spec.train.optimizer.learning_rate / 3)},
    )


def _overfitting(epochs: list[EpochFinished], spec: RunSpec) -> Finding | None:
    validation = _series(epochs, "validation.loss")
    train = _series(epochs, "train.loss")
    if len(validation) < EPOCHS_MIN or len(train) < EPOCHS_MIN:
        return None
    best = min(validation)
    at = validation.index(best)
    if at == len(validation) - 1 or validation[-1] < OVERFIT_RISE * best or train[-1] >= train[at]:
        return None
    change: dict[str, Any] = {"train.optimizer.weight_decay": _rounded(max(0.05, 5 * _decay(spec)))}
    if spec.train.early_stopping is None:
        change["train.early_stopping"] = {"patience": 5}
    return Finding(
        "overfitting",
        f"The model over-fits: validation loss was best in epoch {at + 1} ({best:.4g}) and is {validation[-1]:.4g} at "
        f"the end, while the training loss went on falling to {train[-1]:.4g}.",
        {"best_epoch": at + 1, "best": best, "last": validation[-1], "train_last": train[-1]},
        change,
        _smaller(spec),
    )


def _underfitting(epochs: list[EpochFinished], spec: RunSpec) -> Finding | None:
    train, validation = _series(epochs, "train.loss"), _series(epochs, "validation.loss")
    if len(train) < EPOCHS_MIN or not validation or validation[-1] > 1.02 * min(validation):
        return None
    quarter = max(1, len(train) // 4)
    fall = 1 - train[-1] / train[-1 - quarter] if train[-1 - quarter] > 0 else 0.0
    if fall / quarter < UNDERFIT_FALL:
        return None
    return Finding(
        "underfitting",
        f"Training ended too early: the training loss still fell by {fall:.1%} in the last {quarter} epochs and the "
        "validation loss was at its best at the end.",
        {"fall": fall, "epochs": quarter, "train_last": train[-1]},
        {"train.epochs": spec.train.epochs * 2},
    )


def _learned_little(epochs: list[EpochFinished], spec: RunSpec, reference: Reference) -> Finding | None:
    """Under-fitting against what is reached without a network: a flat loss does not say that all is learned."""
    train, validation = _series(epochs, "train.loss"), _series(epochs, "validation.loss")
    constant = reference.constant_loss
    if not train or not validation or not constant:
        return None
    gain = 1 - min(validation) / constant
    if reference.model:
        least = reference.constant + LEAST_OF_QUICK * (reference.quick - reference.constant)
        if reference.network >= min(least, reference.quick) or reference.quick <= reference.constant:
            return None
        named = f"{reference.metric} {reference.network:.4g} on test rows, where {reference.model} reach"
        text = f"{named} {reference.quick:.4g} and one answer for every row {reference.constant:.4g}"
    elif gain < LEAST_GAIN:
        text = (
            f"its best validation loss is {min(validation):.4g}, where one answer for every row has {constant:.4g}: "
            f"{max(0.0, gain):.0%} less"
        )
    else:
        return None
    if train[-1] < (1 - LEAST_GAIN) * min(validation):
        return None  # it learns its own rows: that is over-fitting
    evidence = {"validation_loss": min(validation), "constant_loss": constant, "train_last": train[-1]}
    return Finding("underfitting", f"The network has learned little: {text}.", evidence, *_larger(spec))


def _larger(spec: RunSpec) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """What lets a network learn more: the most likely change, and others to try."""
    rate = {"train.optimizer.learning_rate": _rounded(spec.train.optimizer.learning_rate * 3)}
    longer = {"train.epochs": spec.train.epochs * 3}
    hidden = getattr(spec.model, "hidden", None)
    if hidden and min(hidden) < HIDDEN_LEAST:
        wider = {"model.hidden": [max(HIDDEN_LEAST, width) for width in hidden]}
        return wider, ({**wider, **rate}, rate, longer)
    return rate, ({**rate, **longer}, longer)


def _smaller(spec: RunSpec) -> tuple[dict[str, Any], ...]:
    """What keeps a network from learning its rows by heart, besides decay and an early end."""
    found: list[dict[str, Any]] = []
    dropout = getattr(spec.model, "dropout", None)
    if dropout is not None and dropout < DROPOUT:
        found.append({"model.dropout": DROPOUT})
    hidden, width = getattr(spec.model, "hidden", None), getattr(spec.model, "width", None)
    if hidden and max(hidden) > HIDDEN_SMALL:
        found.append({"model.hidden": [max(HIDDEN_SMALL, each // 4) for each in hidden]})
    elif isinstance(width, int) and width >= 4 * HIDDEN_SMALL:
        found.append({"model.width": width // 2})
    return tuple(found)


def _learning_rate_high(steps: list[TrainStep], looks: list[Diagnostics], spec: RunSpec) -> Finding | None:
    losses = [step.loss for step in steps]
    spikes = [
        i
        for i in range(2, len(losses))
        if not math.isfinite(losses[i]) or losses[i] > SPIKE * sorted(losses[max(0, i - 5) : i])[min(i, 5) // 2]
    ]
    ratios = _weight_ratios(looks)
    worst = max(ratios, key=lambda item: item[1], default=("", 0.0))
    if not spikes and worst[1] < UPDATE_RATIO_HIGH:
        return None
    evidence = {"spikes": float(len(spikes)), "largest_update_ratio": worst[1]}
    why = f"{len(spikes)} of {len(losses)} logged losses jumped to more than {SPIKE:g} times their neighbors"
    if worst[1] >= UPDATE_RATIO_HIGH:
        why = f"one update changed {worst[0]} by {worst[1]:.1%} of its norm" + (f", and {why}" if spikes else "")
    return Finding(
        "learning_rate_high",
        f"The learning rate is too high: {why}.",
        evidence,
        {"train.optimizer.learning_rate": _rounded(spec.train.optimizer.learning_rate / 3)},
    )


def _learning_rate_low(looks: list[Diagnostics], spec: RunSpec) -> Finding | None:
    ratios = [ratio for _, ratio in _weight_ratios(looks[len(looks) // 4 : max(1, 3 * len(looks) // 4)])]
    if not ratios or max(ratios) > UPDATE_RATIO_LOW:
        return None
    return Finding(
        "learning_rate_low",
        f"The learning rate is too low: no layer changed by more than {max(ratios):.1e} of its norm in an update.",
        {"largest_update_ratio": max(ratios)},
        {"train.optimizer.learning_rate": _rounded(spec.train.optimizer.learning_rate * 10)},
    )


def _dead_units(looks: list[Diagnostics], spec: RunSpec) -> Finding | None:
    if not looks:
        return None
    shares = {name: values["dead_share"] for name, values in looks[-1].values.items() if "dead_share" in values}
    name = max(shares, key=lambda key: shares[key], default="")
    if not name or shares[name] < DEAD_SHARE:
        return None
    return Finding(
        "dead_units",
        f"{shares[name]:.0%} of the units after {name} are 0 for every row that was looked at: they learn nothing.",
        {"dead_share": shares[name]},
        {"train.optimizer.learning_rate": _rounded(spec.train.optimizer.learning_rate / 3)},
    )


def _data_bound(steps: list[TrainStep]) -> Finding | None:
    shares = sorted(step.extra["data_wait_share"] for step in steps if "data_wait_share" in step.extra)
    if not shares or shares[len(shares) // 2] < DATA_WAIT_SHARE:
        return None
    share = shares[len(shares) // 2]
    return Finding(
        "data_bound",
        f"Training waits for data: {share:.0%} of the time goes into reading rows. Put the prepared data on a faster "
        "disk, or give the workers more memory so that it stays cached.",
        {"data_wait_share": share},
    )


def _weight_ratios(looks: list[Diagnostics]) -> list[tuple[str, float]]:
    """(parameter, update ratio) of weights; biases start at 0, where a ratio says nothing."""
    return [
        (name, values["update_ratio"])
        for look in looks
        for name, values in look.values.items()
        if name.endswith("weight") and "update_ratio" in values and values.get("weight_norm", 0) > 0
    ]


def _series(epochs: list[EpochFinished], name: str) -> list[float]:
    """Finite ones: of a run that diverged the last do not tell a trend."""
    values = [float(epoch.metrics[name]) for epoch in epochs if name in epoch.metrics]
    return [value for value in values if math.isfinite(value)]


def _decay(spec: RunSpec) -> float:
    return spec.train.optimizer.weight_decay


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
