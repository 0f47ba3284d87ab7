"""An ensemble in one network for tables: members share all layers but a first scaling and a last head of their own.

Source: Gorishniy, Kotelnikov, Babenko, "TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling"
(2024), the form named TabM-mini; numbers come through the piecewise-linear bins of the data section.

Invariant: outside of training the answer is the mean of the members' probabilities (of their values, for a quantity) as
logits. In training each row teaches one member, drawn at random: in expectation that is the mean of the members' own
losses, which is what keeps them different, for the price of one network.

Covered: any number of numeric inputs of fixed shape. Not covered: axes of varying length.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.model import TabularSpec


class Tabular(nn.Module):
    """(N, …) inputs -> (N, num_outputs) float32."""

    def __init__(self, num_features: int, spec: TabularSpec, num_outputs: int) -> None:
        super().__init__()
        self.members = spec.members
        signs = torch.randint(0, 2, (spec.members, num_features)) * 2 - 1
        self.scales = nn.Parameter(signs.float())
        layers: list[nn.Module] = []
        width = num_features
        for hidden in spec.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(spec.dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers)
        bound = 1 / math.sqrt(width)  # nn.Linear's own initialization, one head a member
        self.heads = nn.Parameter(torch.empty(spec.members, width, num_outputs).uniform_(-bound, bound))
        self.biases = nn.Parameter(torch.empty(spec.members, num_outputs).uniform_(-bound, bound))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        flat = [tensor.flatten(1).to(self.heads.dtype) for tensor in inputs]
        rows = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
        return self._taught(rows) if self.training else self._asked(rows)

    def _taught(self, rows: torch.Tensor) -> torch.Tensor:
        """Each row through one member of its own."""
        member = torch.randint(self.members, (len(rows),), device=rows.device)
        hidden = self.layers(rows * self.scales[member])
        return torch.einsum("nh,nho->no", hidden, self.heads[member]) + self.biases[member]

    def _asked(self, rows: torch.Tensor) -> torch.Tensor:
        """All rows through all members: (M, N, …) until the mean."""
        hidden = self.layers(rows.unsqueeze(0) * self.scales.unsqueeze(1))
        outputs = torch.matmul(hidden, self.heads) + self.biases.unsqueeze(1)
        if outputs.shape[-1] == 1:
            return outputs.mean(dim=0)
        return torch.logsumexp(torch.log_softmax(outputs, dim=-1), dim=0) - math.log(self.members)


def build_tabular(spec: TabularSpec, inputs: tuple[TensorSpec, ...], num_outputs: int) -> nn.Module:
    """Raises ModelError for text or inputs of varying length."""
    for tensor in inputs:
        if tensor.datatype == "BYTES" or -1 in tensor.item_shape:
            raise ModelError(
                "Cannot build a tabular network",
                found=f"input {tensor.name!r} is {tensor.datatype} {list(tensor.shape)}",
                rule="it takes numbers of a fixed shape",
                remedy="Encode the column as numbers in the data section, or choose another family.",
            )
    return Tabular(sum(math.prod(tensor.item_shape) for tensor in inputs), spec, num_outputs)
