"""What a search leaves behind: the accepted graphs, the chosen network's origin, the facts for report and manifest.

Never imports torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from cluster.bundle.files import WEIGHTS
from cluster.bundle.manifest import Variant
from cluster.store.stage_facts import CompressFacts
from trainers.compress.candidate import BASELINE, Candidate
from trainers.compress.decision import ABOUT_EQUAL, accepted_of
from trainers.compress.recipe_search import RecipeSearch
from trainers.export.bundle import FLOAT_GRAPH, copy_graph

ORIGIN = (WEIGHTS, "plan.json", "network.json")


def compression_facts(search: RecipeSearch, chosen: Candidate | None) -> CompressFacts:
    """What the search alone knows of the stage's facts."""
    baseline, candidates = search.baseline, search.candidates
    measured = next((one for one in candidates if one.gate and one.baseline_cost), None)
    metrics: dict[str, float] = {}
    if measured and measured.gate and measured.baseline_cost:
        metrics = {
            f"gate.{measured.gate.metric}": measured.gate.baseline,
            **{name: float(value) for name, value in measured.baseline_cost.to_dict().items()},
        }
    alone = baseline.independence
    float_variant = Variant(
        name=BASELINE,
        file=FLOAT_GRAPH,
        precision="fp32",
        metrics=metrics,
        rows_independent=alone.independent if alone else None,
    )
    return CompressFacts(
        chosen=chosen.name if chosen else BASELINE,
        variants=(float_variant, *(one.variant() for one in accepted_of(candidates))),
        candidates=[one.to_dict() for one in candidates],
        skipped=list(search.skipped),
        baseline={
            "size_bytes": baseline.size_bytes,
            "macs": baseline.macs,
            "peak_memory_bytes": baseline.peak_memory_bytes,
            "independence": alone.to_dict() if alone else None,
            **metrics,
        },
    )


def copy_accepted(candidates: Sequence[Candidate], folder: Path) -> None:
    """Put the graph of each accepted candidate into the folder, under the name of its variant."""
    for one in accepted_of(candidates):
        copy_graph(one.file, folder / one.variant().file)


def copy_origin(chosen: Candidate | None, candidates: Sequence[Candidate], folder: Path) -> None:
    """Put weights, plan and model section of the chosen variant's network beside the graphs: they rebuild it."""
    if chosen is None:
        return
    network = chosen.name if chosen.parent == BASELINE else chosen.parent
    made = next((one.path for one in candidates if one.name == network and one.path), None)
    for name in ORIGIN:
        if made is not None and (made.parent / name).exists():
            stem, _, suffix = name.partition(".")
            shutil.copyfile(made.parent / name, folder / f"{stem}.{network}.{suffix}")


def headline(search: RecipeSearch, chosen: Candidate | None) -> str:
    """One line for the display."""
    if chosen is None:
        first = next(iter(search.candidates), None)
        return f"the float model stays: {first.name} {first.reason}" if first else "the float model stays"
    assert chosen.gate is not None, "a chosen candidate was measured"
    assert chosen.cost is not None, "a chosen candidate was timed"
    assert chosen.size_bytes is not None, "a chosen candidate has a file"
    smaller = search.baseline.size_bytes / chosen.size_bytes
    return (
        f"{chosen.name}: {smaller:.1f}× smaller, {speed_words(chosen.cost.speedup)}, "
        f"{chosen.gate.metric} {chosen.gate.baseline:.4f} -> {chosen.gate.candidate:.4f} ({chosen.gate.verdict})"
    )


def speed_words(speedup: float) -> str:
    """A ratio below 1 is slower, so it is never called faster; one near 1 is called equal."""
    if abs(speedup - 1.0) <= ABOUT_EQUAL:
        return "about equally fast"
    return f"{speedup:.1f}× faster" if speedup > 1.0 else f"{speedup:.2f}× the speed"
