"""Optimizers of a spec: each against its paper or torch, and every rule of the loop for each of them.

That none of them sees the micro-batch is in test_oracle.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cluster.errors import InterruptedRunError, ModelError, SpecError
from cluster.spec.optimizer import CONSTANTS, OptimizerSpec
from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import HERE, request_for, run_ranks, start, write_data
from trainers.loop import FitRequest, fit
from trainers.loop.parts.groups import layer_depths, parameter_groups
from trainers.loop.parts.optimizer import build_optimizer, set_learning_rate
from trainers.loop.parts.quick_step import QuickStep

CPU = torch.device("cpu")
OWN = f"{HERE}:make_own_optimizer"
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": {"name": name, "learning_rate": 0.02}} for name in CONSTANTS if name != "adamw"},
    "own": {"optimizer": {"name": OWN, "options": {"pull": 0.5}, "learning_rate": 0.1}},
    "l1, groups and layers": {
        "optimizer": {
            "l1": 0.01, "layer_decay": 0.7,
            "groups": [{"match": "0.*", "learning_rate_factor": 0.5}, {"match": "*.bias", "weight_decay": 0.1}],
        }
    },
    "callbacks": {"callbacks": [f"{HERE}:Meddling", {"name": f"{HERE}:Meddling", "arguments": {"factor": 1.01}}]},
    "schedule": {"schedule": {"name": "cosine_restarts", "t_mult": 2.0, "warmup_updates": 3, "eta_min": 1e-4}},
    "max_updates": {"max_updates": 7},
}  # fmt: skip


def net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 9) -> list[torch.Tensor]:
    """The weights after steps with gradients that depend on them."""
    draw = torch.Generator().manual_seed(7)
    for number in range(count):
        inputs = torch.randn(11, 6, generator=draw, dtype=torch.float64)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        set_learning_rate(optimizer, 0.01 * (number + 1))
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_torchs_own_are_torchs_own(name: str) -> None:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor}[name]
    model, twin = net(), net()
    found = steps(model, build_optimizer(model, OptimizerSpec(name=name, weight_decay=0.3)))
    weights, biases = ([p for p in twin.parameters() if (p.dim() > 1) is more] for more in (True, False))
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}]
    more: dict[str, Any] = {} if name == "adafactor" else {"fused": True}
    expected = steps(twin, kind(groups, lr=0.0, **more))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_muon_is_torchs_for_hidden_matrices_and_adamw_for_the_rest() -> None:
    model, twin = net(), net()
    found = steps(model, build_optimizer(model, OptimizerSpec(name="muon", weight_decay=0.2)))
    hidden = [twin[0].weight, twin[2].weight]
    rest = [{"params": [twin[4].weight], "weight_decay": 0.2},
            {"params": [p for p in twin.parameters() if p.dim() == 1], "weight_decay": 0.0}]  # fmt: skip
    muon = torch.optim.Muon(hidden, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    both = [muon, torch.optim.AdamW(rest, foreach=True)]
    draw = torch.Generator().manual_seed(7)
    for number in range(9):
        inputs = torch.randn(11, 6, generator=draw, dtype=torch.float64)
        twin.zero_grad()
        twin(inputs).square().mean().backward()
        for optimizer in both:
            set_learning_rate(optimizer, 0.01 * (number + 1))
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(found, twin.parameters(), strict=True))


class PaperLion(torch.optim.Optimizer):
    """arXiv:2302.06675, algorithm 2, word for word."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for w in group["params"]:
                m = self.state[w].get("m", torch.zeros_like(w))
                c = 0.9 * m + (1 - 0.9) * w.grad
                w.copy_(w - group["lr"] * (torch.sign(c) + group["weight_decay"] * w))
                self.state[w]["m"] = 0.99 * m + (1 - 0.99) * w.grad


class PaperScheduleFree(torch.optim.Optimizer):
    """arXiv:2405.15682, algorithm 1 with AdamW: x, y and z are held each, decay at y."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for y in group["params"]:
                s = self.state[y]
                if not s:
                    s.update(x=y.clone(), z=y.clone(), v=torch.zeros_like(y), t=0, total=0.0, most=0.0)
                s["t"] += 1
                s["most"] = max(s["most"], group["lr"])
                s["total"] += s["most"] ** 2
                s["v"] = 0.999 * s["v"] + (1 - 0.999) * y.grad**2
                g = y.grad / ((s["v"] / (1 - 0.999 ** s["t"])).sqrt() + 1e-8)
                s["z"] = s["z"] - group["lr"] * (g + group["weight_decay"] * y)
                c = s["most"] ** 2 / s["total"]
                s["x"] = (1 - c) * s["x"] + c * s["z"]
                y.copy_((1 - 0.9) * s["z"] + 0.9 * s["x"])


@pytest.mark.parametrize(("name", "kind"), [("lion", PaperLion), ("schedule_free", PaperScheduleFree)])
def test_our_own_are_their_papers(name: str, kind: Any) -> None:
    model, twin = net(), net()
    optimizer = build_optimizer(model, OptimizerSpec(name=name, weight_decay=0.3))
    found = steps(model, optimizer)
    weights, biases = ([p for p in twin.parameters() if (p.dim() > 1) is more] for more in (True, False))
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}]
    paper = kind(groups, {"lr": 0.0})
    for a, b in zip(found, steps(twin, paper), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    if name == "schedule_free":
        optimizer.eval()  # type: ignore[attr-defined]
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.detach(), paper.state[b]["x"], rtol=1e-11, atol=1e-13)


def recipe_request(prepared: Path, name: str, *, workers: int = 1, micro: int = 4, **more: Any) -> FitRequest:
    values: dict[str, Any] = {"schedule": {"name": "constant", "warmup": 0.1}, **RECIPES[name]}
    options = {"dropout": 0.2, "double": False} if workers == 1 and micro == 4 else {}
    return request_for(
        prepared, batch=12, micro=micro, workers=workers, arguments=options, epochs=3, keep="last", **values, **more
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_stop_in_the_middle_of_an_epoch_changes_no_byte(tmp_path: Path, name: str) -> None:
    prepared = write_data(tmp_path / "data", 44, dtype="FP32")
    whole = fit(recipe_request(prepared, name), sink=ListSink(), device=CPU)
    request, calls = recipe_request(prepared, name, checkpoints=tmp_path / "ck"), iter(range(100))
    with pytest.raises(InterruptedRunError):
        fit(request, sink=ListSink(), device=CPU, interrupt=lambda: next(calls) == 5)
    resumed = fit(request, sink=ListSink(), device=CPU)
    assert resumed.updates == whole.updates == (7 if name == "max_updates" else 12)
    assert [event.metrics for event in resumed.history] == [event.metrics for event in whole.history]
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def _all_recipes(rank: int, prepared: str) -> dict[str, list[torch.Tensor]]:
    found = {}
    for name in RECIPES:
        result = fit(recipe_request(Path(prepared), name, workers=2, micro=3), sink=ListSink(), device=CPU)
        found[name] = [tensor.numpy() for tensor in result.weights.values()]
    return found


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 44)
    first, second = run_ranks(2, _all_recipes, tmp_path / "ranks", str(prepared))
    for name in RECIPES:
        alone = fit(recipe_request(prepared, name, micro=12), sink=ListSink(), device=CPU).weights.values()
        for a, b, c in zip(alone, first[name], second[name], strict=True):
            torch.testing.assert_close(torch.from_numpy(b), a, rtol=1e-9, atol=1e-11, msg=name)
            assert (b == c).all(), name


def test_schedule_free_trains_at_y_and_keeps_x(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 36, dtype="FP32")
    job, state = start(recipe_request(prepared, "schedule_free"))
    before = [parameter.detach().clone() for parameter in state.exchange.parameters]
    from trainers.loop.loop import remaining_windows
    from trainers.loop.step import update

    for window in remaining_windows(job, state):
        update(job, state, window)
    held = [parameter.detach().clone() for parameter in state.exchange.parameters]
    with state.evaluated():
        inside = [parameter.detach().clone() for parameter in state.exchange.parameters]
    after = [parameter.detach() for parameter in state.exchange.parameters]
    assert all(torch.equal(a, b) for a, b in zip(held, after, strict=True)), "to the byte"
    assert not any(torch.equal(a, b) for a, b in zip(held, inside, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(held, before, strict=True))


def test_layers_are_the_numbered_parts_of_names() -> None:
    names = [
        "embed.weight",
        "cls",
        "blocks.0.a.weight",
        "blocks.0.b.bias",
        "blocks.1.a.weight",
        "norm.weight",
        "head.w",
    ]
    assert list(layer_depths(names).values()) == [0, 0, 1, 1, 2, 3, 3]
    model = net()
    groups = parameter_groups(model, OptimizerSpec(layer_decay=0.5))
    factors = {id(p): group.get("lr_factor", 1.0) for group in groups for p in group["params"]}
    assert [factors[id(p)] for p in model.parameters()] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


def test_the_last_group_that_matches_holds_and_every_parameter_is_in_one() -> None:
    model = net()
    raw = [{"match": "*", "weight_decay": 0.2}, {"match": "2.*", "learning_rate_factor": 0.1},
           {"match": "2.bias", "weight_decay": 0.0}]  # fmt: skip
    groups = parameter_groups(model, OptimizerSpec.model_validate_json(json.dumps({"groups": raw})))
    found = {id(p): (group["weight_decay"], group.get("lr_factor", 1.0)) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == 6
    assert [found[id(p)] for p in model.parameters()] == [
        (0.2, 1.0), (0.2, 1.0), (0.2, 0.1), (0.0, 0.1), (0.2, 1.0), (0.2, 1.0)]  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "error", "words"),
    [
        ({"groups": [{"match": "heda.*"}]}, SpecError, r"train\.optimizer\.groups\[0\] has match: 'heda\.\*'"),
        ({"name": "builtins:list"}, ModelError, r"a builtins\.list"),
        ({"name": f"{HERE}:no_such"}, SpecError, "no_such"),
        ({"groups": [{"match": "*", "freeze": True}]}, ModelError, "none of its parameters requires a gradient"),
    ],
    ids=["no match", "no optimizer", "no function", "all frozen"],
)
def test_what_cannot_be_made_is_one_sentence(
    tmp_path: Path, optimizer: dict[str, Any], error: type[Exception], words: str
) -> None:
    request = request_for(write_data(tmp_path, 24), batch=12, micro=4, optimizer=optimizer)
    with pytest.raises(error, match=words):
        fit(request, sink=ListSink(), device=CPU)


def test_a_class_that_derives_from_a_fused_one_keeps_its_own_step() -> None:
    class Louder(torch.optim.AdamW):
        pass

    assert not QuickStep(Louder(net().parameters(), lr=0.1, fused=True)).ready
