"""Recipes that train: prune and fine-tune, distill into a student, and the dense rival.

Invariant: a pruned network is judged after fine-tuning, never before (right after the cut accuracy is near chance);
its parameters and multiply-accumulates have fallen, or it is rejected as not pruned.

Covered: the run's own family. Not covered: architectures of another family as students.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from cluster.bundle.files import WEIGHTS
from trainers.compress.judge import Candidate, Judgment, predict_graph
from trainers.compress.ladder import BASELINE, DENSE, Ladder, Parent
from trainers.compress.outcome import best_of
from trainers.compress.prune.choose import plan_pruning, prune_module
from trainers.compress.prune.cost import count_macs, count_parameters
from trainers.compress.students import build_student, scaled_model
from trainers.compress.workshop import Made, Work, Workshop
from trainers.models.predict import tensors_of

TAYLOR_ROWS = 512  # first-order terms of a few hundred rows order channels well enough
TAYLOR_BATCH_ROWS = 64
RIVAL_WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


def run_model_steps(ladder: Ladder, workshop: Workshop) -> None:
    """All training recipes of the spec, then the rival."""
    made: list[Made] = []
    if "prune" in ladder.spec.recipes:
        made += prune_by_bisection(ladder, workshop)
    if "distill" in ladder.spec.recipes:
        made.append(distill_student(ladder, workshop))
    if made and ladder.spec.dense_rival:
        train_rival(ladder, workshop, made)


def prune_by_bisection(ladder: Ladder, workshop: Workshop) -> list[Made]:
    """The middle ratio first; stronger after a ratio that keeps the budget, weaker after one that does not."""
    ratios = sorted(ladder.spec.prune.ratios)
    if ladder.exhaustive:
        return [made for ratio in ratios if (made := prune_once(ladder, workshop, ratio)) is not None]
    kept: list[Made] = []
    reasons = dict.fromkeys(ratios, "")
    low, high = 0, len(ratios) - 1
    while low <= high:
        middle = (low + high) // 2
        made = prune_once(ladder, workshop, ratios[middle])
        reasons.pop(ratios[middle])
        if made is not None:
            kept.append(made)
            reasons.update(dict.fromkeys(ratios[low:middle], "a stronger ratio keeps the budget"))
            low = middle + 1
        else:
            reasons.update(dict.fromkeys(ratios[middle + 1 : high + 1], "a weaker ratio loses too much"))
            high = middle - 1
    for ratio, reason in reasons.items():
        ladder.skipped.append({"name": prune_name(ratio), "recipe": "prune", "reason": reason})
    return kept


def prune_once(ladder: Ladder, workshop: Workshop, ratio: float) -> Made | None:
    """Cut, fine-tune, judge and climb; None when the budget is not kept."""
    spec, name = ladder.spec.prune, prune_name(ratio)
    ladder.announce(name, "prune", BASELINE)
    module, example = workshop.module(), workshop.example()
    before = {"parameters": count_parameters(module), "macs": count_macs(module, example)}
    batches = (lambda: training_batches(workshop)) if spec.importance == "taylor" else None
    plan = plan_pruning(module, example, ratio, spec, batches)
    prune_module(module, plan, example)
    after = {"parameters": count_parameters(module), "macs": count_macs(module, example)}
    notes = {"ratio": ratio, "before": before, "after": after, "groups": plan["groups"]}
    if after["parameters"] >= before["parameters"] or after["macs"] >= before["macs"]:
        reason = f"nothing could be cut: {after['parameters']:,} of {before['parameters']:,} parameters are left"
        ladder.record(Judgment(name, "prune", BASELINE, None, "fp32", False, reason, notes=notes))
        return None
    arguments = workshop.arguments(plan=plan, weights=str((workshop.weights / WEIGHTS).resolve()))
    made = workshop.make(Work(name, arguments, spec.epochs, spec.learning_rate, distill=spec.distill))
    return made if judge_made(ladder, made, "prune", notes) else None


def distill_student(ladder: Ladder, workshop: Workshop) -> Made:
    """A narrower network of the same family, taught by the trained one."""
    spec = ladder.spec.distill
    name = f"student{round(100 * spec.width)}"
    ladder.announce(name, "distill", BASELINE)
    model = scaled_model(workshop.resolved.spec.model, spec.width)
    arguments = workshop.arguments(model)
    made = workshop.make(Work(name, arguments, spec.epochs, spec.learning_rate, distill=True))
    judge_made(ladder, made, "distill", {"model": model.model_dump(mode="json")})
    return made


def train_rival(ladder: Ladder, workshop: Workshop, made: list[Made]) -> None:
    """A smaller dense network of about the best result's arithmetic, trained without a teacher for as many epochs as
    the original and the result together had: pruning often loses to one."""
    run = workshop.resolved.spec
    smallest = _network_to_beat(ladder, made)
    models = {width: scaled_model(run.model, width) for width in RIVAL_WIDTHS}
    macs = {
        width: count_macs(build_student(**workshop.arguments(model)), workshop.example())
        for width, model in models.items()
    }
    width = min(macs, key=lambda one: abs(macs[one] - smallest.facts["macs"]))
    name = f"dense{round(100 * width)}"
    ladder.announce(name, DENSE, BASELINE)
    retrained = {"prune": ladder.spec.prune.epochs, "distill": ladder.spec.distill.epochs}
    epochs = run.train.epochs + max(retrained[recipe] for recipe in retrained if recipe in ladder.spec.recipes)
    work = Work(
        name,
        workshop.arguments(models[width]),
        epochs,
        run.train.optimizer.learning_rate,
        distill=False,
    )
    judge_made(ladder, workshop.make(work), DENSE, {"rival_of": smallest.name, "width": width})


def _network_to_beat(ladder: Ladder, made: list[Made]) -> Made:
    """The network behind the best accepted candidate, else the smallest one."""
    best = best_of(ladder)
    behind = {best.name, best.parent} if best else set()
    return next((one for one in made if one.name in behind), min(made, key=lambda one: one.facts["macs"]))


def judge_made(ladder: Ladder, made: Made, recipe: str, notes: dict[str, Any]) -> bool:
    """Judge a trained network as it is and after the graph recipes; whether it keeps the budget in float."""
    parent_notes = {**notes, "parameters": made.facts["parameters"], "macs": made.facts["macs"]}
    outputs = predict_graph(made.graph, ladder.rows.gate)
    macs = made.facts["macs"]
    judgment = ladder.judge(Candidate(made.name, recipe, BASELINE, made.graph, outputs, "fp32", parent_notes, macs))
    keeps = judgment.gate is not None and judgment.gate.drop <= ladder.spec.budget.max_drop
    if keeps:
        ladder.climb(Parent(made.name, made.graph, {"made_by": recipe}, macs))
    return keeps


def training_batches(workshop: Workshop) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Some rows of the training split, for Taylor importance."""
    split = workshop.prepared.splits["train"]
    for start in range(0, min(len(split), TAYLOR_ROWS), TAYLOR_BATCH_ROWS):
        rows = slice(start, start + TAYLOR_BATCH_ROWS)
        yield tensors_of(split.inputs, rows), tensors_of({"targets": split.targets}, rows)[0]


def prune_name(ratio: float) -> str:
    return f"prune{round(100 * ratio)}"
