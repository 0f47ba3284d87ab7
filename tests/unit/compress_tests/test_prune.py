"""Structured pruning: what hangs together goes together, the rest stays, and the plan rebuilds the result."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.compress import PruneSpec
from cluster.spec.model import CnnSpec, MlpSpec, TransformerSpec
from trainers.compress.prune.choose import kept_numbers, plan_pruning, prune_module
from trainers.compress.prune.cost import count_macs, count_parameters
from trainers.compress.prune.groups import find_groups
from trainers.compress.prune.plan import apply_plan
from trainers.compress.prune.reshape import match_axes
from trainers.compress.students import scaled_model
from trainers.models import build_model

IMAGE = (TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 12, 12)),)
PIXELS = (torch.randn(4, 1, 12, 12),)


class Residual(nn.Module):
    """A residual sum and a depthwise convolution: three layers that must be cut together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.depthwise(x + self.branch(x)).relu().mean((2, 3)))


class Attention(nn.Module):
    """One encoder layer: the feed-forward width may go, the heads stay."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(tokens)).mean(1))


class Shuffled(nn.Module):
    """Channels are mixed by a reshape that nothing follows: they must not be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        n, _, h, w = x.shape
        x = x.view(n, 2, 8, h, w).transpose(1, 2).reshape(n, 16, h, w)
        return self.head(self.second(x).relu().mean((2, 3)))


class Joined(nn.Module):
    """A concatenation, which is not followed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 1)
        self.second = nn.Conv2d(1, 16, 1)
        self.head = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.first(x), self.second(x)], 1).mean((2, 3)))


def models() -> dict[str, tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    table = (TensorSpec(name="x", datatype="FP32", shape=(-1, 20)),)
    return {
        "cnn": (build_model(CnnSpec(family="cnn", width=16), IMAGE, 5), PIXELS),
        "mlp": (build_model(MlpSpec(family="mlp", hidden=(32, 32)), table, 3), (torch.randn(4, 20),)),
        "residual": (Residual(), PIXELS),
        "attention": (Attention(), (torch.randint(0, 30, (4, 7)),)),
    }


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual", "attention"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_removed_channels_were_the_only_difference(name: str, scope: Any) -> None:
    """Where the channels that go are zero already, the cut module answers what the whole one answered."""
    module, example = models()[name]
    module.eval()
    plan = plan_pruning(module, example, 0.5, PruneSpec(scope=scope))
    groups = find_groups(module, example)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for group in groups:
            for place in group.places:
                kept = plan["keep"].get(place.name, {}).get(str(place.axis))
                if kept is None or (place.side == "norm" and place.name.endswith("running_var")):
                    continue
                gone = sorted(set(range(tensors[place.name].shape[place.axis])) - set(kept))
                tensors[place.name].index_fill_(place.axis, torch.tensor(gone), 0.0)
    before, macs, parameters = module(*example), count_macs(module, example), count_parameters(module)
    prune_module(module, plan, example)
    if name != "attention":  # a layer norm's mean and variance change with the width it is taken over
        torch.testing.assert_close(module(*example), before, atol=1e-5, rtol=1e-4)
    assert count_parameters(module) < parameters
    assert name == "attention" or count_macs(module, example) < macs


def test_a_residual_sum_its_norm_and_a_depthwise_layer_are_one_group() -> None:
    groups = [group for group in find_groups(Residual(), PIXELS) if not group.frozen]
    assert len(groups) == 1
    assert {place.name.split(".")[0] for place in groups[0].places} == {"stem", "norm", "branch", "depthwise", "head"}


@pytest.mark.parametrize("module", [Shuffled(), Joined()])
def test_what_is_not_followed_stays_whole(module: nn.Module) -> None:
    frozen = {place.name for group in find_groups(module, PIXELS) if group.frozen for place in group.places}
    assert {"first.weight", "second.weight"} & frozen
    plan = plan_pruning(module, PIXELS, 0.5, PruneSpec())
    prune_module(module, plan, PIXELS)
    assert module.first.out_channels == 16  # type: ignore[union-attr]


def test_attention_keeps_its_width_and_loses_feed_forward_channels() -> None:
    module, example = models()["attention"]
    prune_module(module, plan_pruning(module, example, 0.5, PruneSpec()), example)
    layer = module.get_submodule("layer")
    assert layer.linear1.out_features == 16  # type: ignore[union-attr]
    assert layer.self_attn.in_proj_weight.shape == (48, 16)  # type: ignore[union-attr]


def test_the_shipped_transformer_loses_width_and_hidden_channels_and_keeps_its_heads() -> None:
    tokens = (TensorSpec(name="tokens", datatype="INT64", shape=(-1, 12)),)
    spec = TransformerSpec(family="transformer", width=32, layers=1, heads=4, vocabulary=50)
    module, example = build_model(spec, tokens, 2).eval(), (torch.randint(1, 50, (4, 12)),)
    macs, parameters = count_macs(module, example), count_parameters(module)
    prune_module(module, plan_pruning(module, example, 0.5, PruneSpec()), example)
    shapes = {name.split(".", 2)[-1]: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    assert shapes["tokens.weight"] == (50, 16)
    assert shapes["layers.0.query_key_value.weight"] == (96, 16)
    assert shapes["layers.0.block.0.weight"] == (64, 16)
    assert count_macs(module, example) < macs / 2
    assert count_parameters(module) < parameters / 2


def test_the_plan_is_json_and_rebuilds_the_shapes() -> None:
    module, example = models()["cnn"]
    plan = json.loads(json.dumps(plan_pruning(module, example, 0.5, PruneSpec())))
    prune_module(module, plan, example)
    again = apply_plan(models()["cnn"][0], plan)
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again.eval()(*example), module.eval()(*example))


def test_a_plan_of_another_network_is_refused() -> None:
    plan = plan_pruning(models()["cnn"][0], PIXELS, 0.5, PruneSpec())
    with pytest.raises(ModelError, match="does not have in that shape"):
        apply_plan(models()["mlp"][0], plan)
    with pytest.raises(ModelError, match="format 99"):
        apply_plan(models()["cnn"][0], {**plan, "format": 99})


def test_kept_numbers_are_multiples_and_never_zero() -> None:
    scores = {0: torch.rand(64), 1: torch.rand(12)}
    assert kept_numbers(scores, 0.5, PruneSpec(round_to=8)) == {0: 32, 1: 8}
    assert kept_numbers(scores, 0.99, PruneSpec(round_to=8)) == {0: 8, 1: 8}
    assert kept_numbers(scores, 0.5, PruneSpec(round_to=16)) == {0: 32, 1: 12}


def test_taylor_and_magnitude_choose_differently() -> None:
    module, example = models()["mlp"]
    with torch.no_grad():  # channel 0 is large but the head does not read it: only the gradient knows
        module.get_parameter("layers.2.weight")[0] *= 10
        module.get_parameter("head.weight")[:, 0] = 0
    batches = lambda: [(example, torch.zeros(4, dtype=torch.int64))]  # noqa: E731
    magnitude = plan_pruning(module, example, 0.5, PruneSpec(importance="magnitude"))
    taylor = plan_pruning(module, example, 0.5, PruneSpec(importance="taylor"), batches)
    assert 0 in magnitude["keep"]["layers.2.weight"]["0"]
    assert 0 not in taylor["keep"]["layers.2.weight"]["0"]


def test_a_forward_that_depends_on_values_cannot_be_pruned() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"torch\.export cannot trace"):
        find_groups(Branches(), PIXELS)


def test_reshapes_are_followed_by_their_factors() -> None:
    assert match_axes([2, 8, 3, 3], [2, 72]) == [([0], [0]), ([1, 2, 3], [1])]
    assert match_axes([2, 6], [2, 2, 3]) == [([0], [0]), ([1], [1, 2])]


def test_students_are_of_the_same_family_in_multiples_of_eight() -> None:
    cnn, mlp = CnnSpec(family="cnn", width=32), MlpSpec(family="mlp", hidden=(128, 32))
    assert scaled_model(cnn, 0.3) == cnn.model_copy(update={"width": 8})
    assert scaled_model(mlp, 0.5) == mlp.model_copy(update={"hidden": (64, 16)})
