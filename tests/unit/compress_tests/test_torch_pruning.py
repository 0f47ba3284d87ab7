"""Two ways to find the channels that hang together, ours and Torch-Pruning's, say the same."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from cluster.errors import MissingDependencyError, ModelError
from cluster.spec.compress import PruneSpec
from tests.unit.compress_tests.test_prune import PIXELS, Attention, Shuffled, models
from trainers.compress.prune.choose import kept_numbers, plan_pruning, prune_module
from trainers.compress.prune.groups import Group, find_groups
from trainers.compress.prune.torch_pruning import find_groups_by_torch_pruning


def cuttable(groups: list[Group]) -> set[tuple[int, frozenset[tuple[str, int, int]]]]:
    return {
        (group.size, frozenset((place.name, place.axis, place.inner) for place in group.places))
        for group in groups
        if not group.frozen
    }


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual"])
def test_both_find_the_same_groups(name: str) -> None:
    pytest.importorskip("torch_pruning")
    module, example = models()[name]
    ours = cuttable(find_groups(module, example))
    assert ours
    assert cuttable(find_groups_by_torch_pruning(module, example)) == ours


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual"])
def test_both_cut_the_same_channels(name: str) -> None:
    pytest.importorskip("torch_pruning")
    module, example = models()[name]
    plans = [plan_pruning(module, example, 0.5, PruneSpec(tracer=tracer)) for tracer in ("own", "torch_pruning")]
    assert plans[0]["keep"] == plans[1]["keep"]
    shape = prune_module(module, plans[1], example)(*example).shape
    assert shape[0] == len(example[0])


def test_heads_stay_whole_in_both() -> None:
    pytest.importorskip("torch_pruning")
    module, example = Attention().eval(), (torch.randint(0, 30, (4, 7)),)
    for find in (find_groups, find_groups_by_torch_pruning):
        frozen = {place.name for group in find(module, example) if group.frozen for place in group.places}
        cut = {place.name for group in find(module, example) if not group.frozen for place in group.places}
        assert not any(place.startswith("layer.self_attn") for place in cut)
        assert "layer.linear1.weight" in cut
        assert "head.weight" in frozen | cut


def test_without_the_package_the_extra_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingDependencyError, match=r"manta-ml\[prune\]"):
        find_groups_by_torch_pruning(*models()["mlp"])
    with pytest.raises(MissingDependencyError):  # the spec's word reaches it
        plan_pruning(*models()["mlp"], 0.5, PruneSpec(tracer="torch_pruning"))


def test_a_forward_that_fails_is_refused_by_name() -> None:
    pytest.importorskip("torch_pruning")

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such thing")

    with pytest.raises(ModelError, match="Torch-Pruning cannot trace"):
        find_groups_by_torch_pruning(Broken(), PIXELS)


def test_global_takes_channels_where_they_matter_least_and_uniform_everywhere_alike() -> None:
    scores = {0: torch.cat([torch.full((8,), 1.0), torch.full((56,), 0.01)]), 1: torch.ones(64)}
    assert kept_numbers(scores, 0.5, PruneSpec(scope="uniform")) == {0: 32, 1: 32}
    assert kept_numbers(scores, 0.45, PruneSpec(scope="global")) == {0: 8, 1: 64}


def test_shuffled_channels_are_left_whole_by_ours() -> None:
    plan = plan_pruning(Shuffled(), PIXELS, 0.5, PruneSpec())
    assert not any(name.startswith("first") for name in plan["keep"])
