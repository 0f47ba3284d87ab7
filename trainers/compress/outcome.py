"""What a climbed ladder means: the accepted candidates, the best of them, the facts for the report and the manifest.

Never imports torch.
"""

from __future__ import annotations

from typing import Any

from cluster.bundle.manifest import Variant
from trainers.compress.judge import Judgment, objective
from trainers.compress.ladder import BASELINE, Ladder

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
    float_variant = Variant(name=BASELINE, file=FLOAT_GRAPH, precision="fp32", metrics=metrics)
    variants = [float_variant, *(judgment.variant() for judgment in accepted_of(ladder))]
    return {
        "chosen": chosen.name if chosen else BASELINE,
        "variants": [variant.model_dump(mode="json") for variant in variants],
        "candidates": [judgment.to_dict() for judgment in ladder.judgments],
        "skipped": ladder.skipped,
        "baseline": {"size_bytes": ladder.baseline.size_bytes, **metrics},
    }


def speed_words(speedup: float) -> str:
    """A ratio below 1 is slower, so it is never called faster."""
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
