"""Decisions from what was measured: accept or reject a candidate, choose the best one, compare with a dense network.

Invariant: pure functions. A candidate is accepted only if a row's answer is the same alone and in any company, the
gate does not fail it, no class loses more than allowed, and it gains what the target minimizes; every rejection has its
reason.

Covered: measured candidates; stopped ones stay as they are. Not covered: measuring (measure.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.spec.compress import CompressSpec
from trainers.compress.accuracy_gate import GateResult
from trainers.compress.candidate import DENSE, Baseline, Candidate
from trainers.compress.latency import Cost

ABOUT_EQUAL = 0.05  # a ratio this near to 1 is within what two measurements of one graph differ by
FASTER_THAN = 1 + ABOUT_EQUAL  # times the baseline; a candidate that saves no time costs accuracy for nothing
SLOWER_AT_MOST = 0.9  # times the baseline's speed, when size is what matters
WITHIN = 1.1  # of the best: candidates this near are equal in cost, and the more accurate one wins


def accept_or_reject(measured: Candidate, baseline: Baseline, spec: CompressSpec) -> Candidate:
    """The candidate with its decision."""
    if measured.state == "stopped":
        return measured
    gate, independence = measured.gate, measured.independence
    assert gate is not None, "a measured candidate has a gate result"
    assert independence is not None, "a measured candidate was tried in company"
    if not independence.independent:  # the batcher joins strangers' requests: an outlier would move everyone's answers
        also = baseline.independence is not None and not baseline.independence.independent
        where = ", as in the float graph" if also else ""
        return measured.decided(False, f"rows change one another's answers{where}: {independence.sentence()}")
    assert measured.cost is not None, "independent candidates are timed"
    assert measured.size_bytes is not None, "a measured candidate has a file"
    ratio = measured.size_bytes / baseline.size_bytes
    return measured.decided(*acceptance(gate, measured.cost, ratio, measured.worst_class_drop, spec))


def acceptance(
    gate: GateResult, cost: Cost, size_ratio: float, worst_class: float | None, spec: CompressSpec
) -> tuple[bool, str]:
    """Accepted or not, and why, in one sentence."""
    if gate.verdict == "fail":
        return False, f"loses too much: {gate.sentence()}"
    if worst_class is not None and worst_class > spec.max_class_drop:
        return False, f"one class loses {worst_class:.1%} of its recall, allowed is {spec.max_class_drop:.1%}"
    slow = _too_slow(cost, size_ratio, spec)
    if slow:
        return False, slow
    if gate.verdict == "pass":
        return True, f"within the budget: {gate.sentence()}"
    if spec.on_inconclusive == "keep_baseline":
        return False, f"the gate split cannot tell: {gate.sentence()}"
    if gate.drop > spec.budget.max_drop:
        return False, f"the gate split cannot tell and the point estimate is beyond the budget: {gate.sentence()}"
    return True, f"accepted on the point estimate, the gate split cannot tell: {gate.sentence()}"


def accepted_of(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [one for one in candidates if one.accepted]


def objective(candidate: Candidate, spec: CompressSpec) -> float:
    """What the target minimizes."""
    assert candidate.cost is not None, "only a measured candidate has an objective"
    assert candidate.size_bytes is not None, "only a measured candidate has a size"
    if spec.target.minimize == "size":
        return float(candidate.size_bytes)
    if spec.target.minimize == "cost":
        return candidate.cost.thread_ms_per_row
    return 1.0 / candidate.cost.speedup  # each was timed against the same baseline, in different minutes


def choose_best(candidates: Sequence[Candidate], spec: CompressSpec) -> Candidate | None:
    """The accepted candidate with least of what the target minimizes, or None; of equal ones the most accurate."""
    costs = [(objective(one, spec), one) for one in accepted_of(candidates)]
    if not costs:
        return None
    least = min(cost for cost, _ in costs)
    near = [(_accuracy(one), -cost, one) for cost, one in costs if cost <= WITHIN * least]
    return max(near, key=lambda item: item[:2])[2]


def compare_with_dense(
    candidates: Sequence[Candidate], chosen: Candidate | None, spec: CompressSpec
) -> dict[str, Any] | None:
    """The best compressed network beside the smaller dense one of nearest cost (`rival` in the stage's facts).

    `recommended` is the more accurate of the two where their costs are within `WITHIN` of each other, else the chosen.
    None when no dense network was trained, or nothing else was accepted.
    """
    dense_names = {one.name for one in candidates if one.recipe == DENSE}
    others = [one for one in candidates if {one.name, one.parent} & dense_names and one.gate and one.cost]
    ours = [one for one in accepted_of(candidates) if not {one.name, one.parent} & dense_names]
    if not others or not ours:
        return None
    best = chosen if chosen in ours else min(ours, key=lambda one: objective(one, spec))
    assert best is not None, "there is at least one"
    cost = objective(best, spec)
    dense = min(others, key=lambda one: max(objective(one, spec) / cost, cost / objective(one, spec)))
    ratio = objective(dense, spec) / cost
    equal = 1 / WITHIN <= ratio <= WITHIN
    better = equal and dense.accepted and _accuracy(dense) > _accuracy(best)
    recommended = dense.name if better else (chosen or best).name
    words = f"{'more' if better else 'not more'} accurate at equal cost" if equal else f"at {ratio:.2f} times the cost"
    sentence = (
        f"{best.name} {_accuracy(best):.4f}, the smaller dense network {dense.name} {_accuracy(dense):.4f}, trained "
        f"as long: the rival is {words}; recommended is {recommended}"
    )
    return {"ours": best.name, "rival": dense.name, "cost_ratio": ratio, "recommended": recommended,
            "sentence": sentence}  # fmt: skip


def _accuracy(candidate: Candidate) -> float:
    assert candidate.gate is not None, "only measured candidates are compared"
    return candidate.gate.candidate


def _too_slow(cost: Cost, size_ratio: float, spec: CompressSpec) -> str | None:
    minimize = spec.target.minimize
    if minimize == "size":
        if size_ratio >= 1:
            return f"is not smaller than the float graph ({size_ratio:.2f}× its bytes)"
        return f"is slower than the float graph here ({cost.speedup:.2f}×)" if cost.speedup < SLOWER_AT_MOST else None
    speedup = cost.cost_ratio if minimize == "cost" else cost.speedup
    if speedup <= FASTER_THAN:
        what = "cheaper a row" if minimize == "cost" else "faster"
        return f"is not {what} than the float graph here ({speedup:.2f}×)"
    return None
