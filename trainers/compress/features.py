"""The layer before the head, for feature matching: what a teacher hands on beside its answers.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), with the angle between features instead of their
distance, so that neither side's scale matters.

Invariant: outside of training a student's wrapper answers logits alone; its projection is no part of the result.

Covered: networks whose last layer is linear. Not covered: features of inner stages.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from cluster.errors import ModelError

NETWORK = "network."


class WithFeatures(nn.Module):
    """(…) -> (N, num_outputs + features): logits, then what the head was given, a student's projected."""

    def __init__(self, network: nn.Module, num_outputs: int, project_to: int | None = None) -> None:
        super().__init__()
        self.network = network
        head = head_of(network, num_outputs)
        self.always = project_to is None
        self.projection = nn.Identity() if project_to is None else nn.Linear(head.in_features, project_to)
        self.seen: torch.Tensor | None = None
        head.register_forward_pre_hook(self._see)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits = self.network(*inputs)
        seen, self.seen = self.seen, None
        if not (self.training or self.always):
            return logits
        assert seen is not None, "the head was run"
        return torch.cat([logits, self.projection(seen.flatten(1))], dim=1)

    def _see(self, _: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self.seen = arguments[0]


def head_of(network: nn.Module, num_outputs: int) -> nn.Linear:
    """The last linear layer with one output a class. Raises ModelError when there is none."""
    heads = [one for one in network.modules() if isinstance(one, nn.Linear) and one.out_features == num_outputs]
    if not heads:
        raise ModelError(
            f"Cannot match features of {type(network).__name__}",
            found=f"it has no linear layer with {num_outputs} outputs",
            rule="the features are what the last linear layer is given",
            remedy="Set compress.distill.feature_weight to 0.",
        )
    return heads[-1]


def feature_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(N, F) each -> (N,): 1 - cosine, 0 where they point the same way."""
    return 1.0 - F.cosine_similarity(student, teacher, dim=1)


def network_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's own weights among those of a `WithFeatures`."""
    return {name.removeprefix(NETWORK): tensor for name, tensor in weights.items() if name.startswith(NETWORK)}
