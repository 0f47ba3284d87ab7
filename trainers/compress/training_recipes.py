"""Recipes that train: prune and fine-tune, distill into a student, and a smaller dense network to compare them with.

Invariant: a pruned network is measured after fine-tuning, never before (right after the cut accuracy is near chance);
its parameters and multiply-accumulates have fallen, or it is rejected as not pruned.

Covered: the run's own family. Not covered: architectures of another family as students.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from cluster.bundle.files import WEIGHTS
from trainers.compress.candidate import DENSE, Candidate, TrainingTask
from trainers.compress.decision import choose_best
from trainers.compress.prune.choose import plan_pruning, prune_module
from trainers.compress.prune.cost import count_macs, count_parameters
from trainers.compress.recipe_search import RecipeSearch
from trainers.compress.retraining import Retraining
from trainers.compress.students import build_student, scaled_model
from trainers.export.session import predict_graph
from trainers.models.predict import tensors_of

TAYLOR_ROWS = 512  # first-order terms of a few hundred rows order channels well enough
TAYLOR_BATCH_ROWS = 64
DENSE_WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


def try_training_recipes(search: RecipeSearch, retraining: Retraining) -> None:
    """All training recipes of the spec, then the dense network."""
    networks: list[Candidate] = []
    if "prune" in search.spec.recipes:
        networks += prune_by_bisection(search, retraining)
    if "distill" in search.spec.recipes:
        networks.append(distill_student(search, retraining))
    if networks and search.spec.dense_rival:
        train_dense(search, retraining, networks)


def prune_by_bisection(search: RecipeSearch, retraining: Retraining) -> list[Candidate]:
    """The middle ratio first; stronger after a ratio that keeps the budget, weaker after one that does not."""
    ratios = sorted(search.spec.prune.ratios)
    if search.exhaustive:
        return [network for ratio in ratios if (network := prune_once(search, retraining, ratio)) is not None]
    kept: list[Candidate] = []
    reasons = dict.fromkeys(ratios, "")
    low, high = 0, len(ratios) - 1
    while low <= high:
        middle = (low + high) // 2
        network = prune_once(search, retraining, ratios[middle])
        reasons.pop(ratios[middle])
        if network is not None:
            kept.append(network)
            reasons.update(dict.fromkeys(ratios[low:middle], "a stronger ratio keeps the budget"))
            low = middle + 1
        else:
            reasons.update(dict.fromkeys(ratios[middle + 1 : high + 1], "a weaker ratio loses too much"))
            high = middle - 1
    for ratio, reason in reasons.items():
        search.skip(prune_name(ratio), "prune", reason)
    return kept


def prune_once(search: RecipeSearch, retraining: Retraining, ratio: float) -> Candidate | None:
    """Cut, fine-tune, and try the network; None when the budget is not kept."""
    spec = search.spec.prune
    proposed = search.propose(Candidate(prune_name(ratio), "prune"))
    module, example = retraining.module(), retraining.example()
    before = {"parameters": count_parameters(module), "macs": count_macs(module, example)}
    batches = (lambda: training_batches(retraining)) if spec.importance == "taylor" else None
    plan = plan_pruning(module, example, ratio, spec, batches)
    prune_module(module, plan, example)
    after = {"parameters": count_parameters(module), "macs": count_macs(module, example)}
    notes = {"ratio": ratio, "before": before, "after": after, "groups": plan["groups"]}
    if after["parameters"] >= before["parameters"] or after["macs"] >= before["macs"]:
        reason = f"nothing could be cut: {after['parameters']:,} of {before['parameters']:,} parameters are left"
        search.keep(proposed.stopped(reason, notes))
        return None
    arguments = retraining.arguments(plan=plan, weights=str((retraining.weights / WEIGHTS).resolve()))
    task = TrainingTask(arguments, spec.epochs, spec.learning_rate, distill=spec.distill)
    network = try_network(search, retraining.make(replace(proposed, task=task, notes=notes)))
    return network if network.keeps_budget(search.spec.budget.max_drop) else None


def distill_student(search: RecipeSearch, retraining: Retraining) -> Candidate:
    """A narrower network of the same family, taught by the trained one."""
    spec = search.spec.distill
    proposed = search.propose(Candidate(f"student{round(100 * spec.width)}", "distill"))
    model = scaled_model(retraining.resolved.spec.model, spec.width)
    task = TrainingTask(retraining.arguments(model), spec.epochs, spec.learning_rate, distill=True)
    notes = {"model": model.model_dump(mode="json")}
    return try_network(search, retraining.make(replace(proposed, task=task, notes=notes)))


def train_dense(search: RecipeSearch, retraining: Retraining, networks: list[Candidate]) -> Candidate:
    """A smaller dense network of about the best result's arithmetic, trained without a teacher for as many epochs as
    the original and the result together had: pruning often loses to one."""
    run = retraining.resolved.spec
    compared = _network_to_beat(search, networks)
    models = {width: scaled_model(run.model, width) for width in DENSE_WIDTHS}
    macs = {
        width: count_macs(build_student(**retraining.arguments(model)), retraining.example())
        for width, model in models.items()
    }
    width = min(macs, key=lambda one: abs(macs[one] - _macs(compared)))
    proposed = search.propose(Candidate(f"dense{round(100 * width)}", DENSE))
    retrained = {"prune": search.spec.prune.epochs, "distill": search.spec.distill.epochs}
    epochs = run.train.epochs + max(retrained[recipe] for recipe in retrained if recipe in search.spec.recipes)
    arguments, rate = retraining.arguments(models[width]), run.train.optimizer.learning_rate
    task = TrainingTask(arguments, epochs, rate, distill=False)
    notes = {"rival_of": compared.name, "width": width}
    return try_network(search, retraining.make(replace(proposed, task=task, notes=notes)))


def try_network(search: RecipeSearch, network: Candidate) -> Candidate:
    """Decide about a trained network as it is; where it keeps the budget, try the graph recipes on it."""
    decided = search.decide(network, predict_graph(network.file, search.rows.gate))
    if decided.keeps_budget(search.spec.budget.max_drop):
        search.try_graph_recipes(decided)
    return decided


def _network_to_beat(search: RecipeSearch, networks: list[Candidate]) -> Candidate:
    """The network behind the best accepted candidate, else the smallest one."""
    best = choose_best(search.candidates, search.spec)
    behind = {best.name, best.parent} if best else set()
    return next((one for one in networks if one.name in behind), min(networks, key=_macs))


def _macs(network: Candidate) -> int:
    assert network.macs is not None, "a trained network's arithmetic was counted"
    return network.macs


def training_batches(retraining: Retraining) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Some rows of the training split, for Taylor importance."""
    split = retraining.prepared.splits["train"]
    for start in range(0, min(len(split), TAYLOR_ROWS), TAYLOR_BATCH_ROWS):
        rows = slice(start, start + TAYLOR_BATCH_ROWS)
        yield tensors_of(split.inputs, rows), tensors_of({"targets": split.targets}, rows)[0]


def prune_name(ratio: float) -> str:
    return f"prune{round(100 * ratio)}"
