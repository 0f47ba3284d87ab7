"""What a climbed ladder means: the accepted candidates, the best of them, the facts for the report and the manifest.

Never imports torch.
"""

from __future__ import annotations

from typing import Any

from cluster.bundle.manifest import Variant
from trainers.compress.judge import ABOUT_EQUAL, Judgment, objective
from trainers.compress.ladder import BASELINE, DENSE, Ladder

FLOAT_GRAPH = "model.onnx"
WITHIN = 1.1  # of the best: candidates this near are equal in cost, and the more accurate one wins


def accepted_of(ladder: Ladder) -> list[Judgment]:
    return [judgment for judgment in ladder.judgments if judgment.accepted]


def best_of(ladder: Ladder) -> Judgment | None:
    """The accepted candidate with least of what the target minimizes, or None; of equal ones the most accurate."""
    accepted = {id(one): objective(one, ladder.spec) for one in accepted_of(ladder)}
    if not accepted:
        return None
    least = min(accepted.values())
    near = [one for one in accepted_of(ladder) if accepted[id(one)] <= WITHIN * least]
    return max(near, key=lambda one: (one.gate.candidate if one.gate else 0.0, -accepted[id(one)]))


def compression_facts(ladder: Ladder, chosen: Judgment | None) -> dict[str, Any]:
    """Facts of the stage: the contract with export, report and `manta show`."""
    measured = next((one for one in ladder.judgments if one.gate and one.baseline_cost), None)
    metrics: dict[str, float] = {}
    if measured and measured.gate and measured.baseline_cost:
        metrics = {
            f"gate.{measured.gate.metric}": measured.gate.baseline,
            **{name: float(value) for name, value in measured.baseline_cost.to_dict().items()},
        }
    alone = ladder.baseline.independence
    float_variant = Variant(
        name=BASELINE,
        file=FLOAT_GRAPH,
        precision="fp32",
        metrics=metrics,
        rows_independent=alone.independent if alone else None,
    )
    variants = [float_variant, *(judgment.variant() for judgment in accepted_of(ladder))]
    return {
        "chosen": chosen.name if chosen else BASELINE,
        "variants": [variant.model_dump(mode="json") for variant in variants],
        "candidates": [judgment.to_dict() for judgment in ladder.judgments],
        "skipped": ladder.skipped,
        "baseline": {
            "size_bytes": ladder.baseline.size_bytes,
            "macs": ladder.baseline.macs,
            "peak_memory_bytes": ladder.baseline.peak_memory_bytes,
            "independence": alone.to_dict() if alone else None,
            **metrics,
        },
    }


def rival_facts(ladder: Ladder, chosen: Judgment | None) -> dict[str, Any] | None:
    """The best compressed network beside the smaller dense one of nearest cost; None when no rival was trained.

    `recommended` is the more accurate of the two where their costs are within `WITHIN` of each other, else the chosen.
    """
    rivals = [one for one in ladder.judgments if is_rival(one, ladder) and one.gate and one.cost]
    ours = [one for one in accepted_of(ladder) if not is_rival(one, ladder)]
    if not rivals or not ours:
        return None
    best = chosen if chosen in ours else min(ours, key=lambda one: objective(one, ladder.spec))
    assert best is not None, "there is at least one"
    cost = objective(best, ladder.spec)
    rival = min(rivals, key=lambda one: max(objective(one, ladder.spec) / cost, cost / objective(one, ladder.spec)))
    ratio = objective(rival, ladder.spec) / cost
    equal = 1 / WITHIN <= ratio <= WITHIN
    better = equal and rival.accepted and _accuracy(rival) > _accuracy(best)
    recommended = rival.name if better else (chosen or best).name
    words = f"{'more' if better else 'not more'} accurate at equal cost" if equal else f"at {ratio:.2f} times the cost"
    sentence = (
        f"{best.name} {_accuracy(best):.4f}, the smaller dense network {rival.name} {_accuracy(rival):.4f}, trained "
        f"as long: the rival is {words}; recommended is {recommended}"
    )
    return {"ours": best.name, "rival": rival.name, "cost_ratio": ratio, "recommended": recommended,
            "sentence": sentence}  # fmt: skip


def is_rival(judgment: Judgment, ladder: Ladder) -> bool:
    """Whether it is the dense rival or made from it."""
    dense = {one.name for one in ladder.judgments if one.recipe == DENSE}
    return judgment.name in dense or judgment.parent in dense


def _accuracy(judgment: Judgment) -> float:
    assert judgment.gate is not None, "only judged candidates are compared"
    return judgment.gate.candidate


def speed_words(speedup: float) -> str:
    """A ratio below 1 is slower, so it is never called faster; one near 1 is called equal."""
    if abs(speedup - 1.0) <= ABOUT_EQUAL:
        return "about equally fast"
    return f"{speedup:.1f}× faster" if speedup > 1.0 else f"{speedup:.2f}× the speed"


def headline(ladder: Ladder, chosen: Judgment | None) -> str:
    """One line for the display."""
    if chosen is None:
        first = next(iter(ladder.judgments), None)
        return f"the float model stays: {first.name} {first.reason}" if first else "the float model stays"
    assert chosen.gate is not None, "a chosen candidate was judged"
    assert chosen.cost is not None, "a chosen candidate was timed"
    assert chosen.size_bytes is not None, "a chosen candidate has a file"
    smaller = ladder.baseline.size_bytes / chosen.size_bytes
    return (
        f"{chosen.name}: {smaller:.1f}× smaller, {speed_words(chosen.cost.speedup)}, "
        f"{chosen.gate.metric} {chosen.gate.baseline:.4f} -> {chosen.gate.candidate:.4f} ({chosen.gate.verdict})"
    )
