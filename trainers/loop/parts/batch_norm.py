"""Batch norm that moves once per global batch, by what all workers saw, and normalizes groups of rows.

    mean, variance of the window = those of all its rows, on all workers, merged from the micro-batches
    running = (1 - momentum) · running + momentum · of the window        where the update was made

Rows are normalized by the mean and variance of their group: `train.batch_norm_rows` neighbors in the window, whoever
reads them in whatever micro-batch (ghost batches: Hoffer et al., "Train longer, generalize better", 2017). Without that
number a group is a micro-batch. A mean over the whole window cannot be had: it is known after the last forward.

Invariant: with groups, what training computes is a function of the window alone, up to the order of sums; without,
of the window and its micro-batches. A forward moves no running statistic; a skipped or repeated window leaves none.

Covered: BatchNorm1d, 2d and 3d of torch. Not covered: subclasses with a forward of their own (some networks of timm):
they move with each micro-batch, and workers' statistics are averaged at the end of an epoch. SyncBatchNorm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Groups:
    """How the rows of the present micro-batch are divided; shared by all layers of a model."""

    sizes: tuple[int, ...] = ()

    def of(self, rows: int) -> tuple[int, ...]:
        """For a layer whose axis 0 may hold several items of each row."""
        whole = sum(self.sizes)
        if len(self.sizes) < 2 or rows % whole:
            return (rows,)
        return tuple(size * (rows // whole) for size in self.sizes)


class _Grouped(nn.modules.batchnorm._BatchNorm):
    """Training forwards of a batch norm layer; all else is torch's."""

    groups: Groups
    seen: list[tuple[torch.Tensor, torch.Tensor, int]]
    """Mean, variance (unbiased) and number of values a channel, of each group since the last collection."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        sizes = self.groups.of(input.shape[0])
        if len(sizes) == 1:
            return self._normalized(input)
        return torch.cat([self._normalized(part) for part in input.split(sizes)])

    def _normalized(self, part: torch.Tensor) -> torch.Tensor:
        if self.running_mean is None or self.running_var is None:
            return F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps)
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        outputs = F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        self.seen.append((mean, variance, part.numel() // part.shape[1]))
        return outputs


class _Grouped1d(_Grouped, nn.BatchNorm1d):
    """`nn.BatchNorm1d`."""


class _Grouped2d(_Grouped, nn.BatchNorm2d):
    """`nn.BatchNorm2d`."""


class _Grouped3d(_Grouped, nn.BatchNorm3d):
    """`nn.BatchNorm3d`."""


KINDS: dict[type, type[_Grouped]] = {
    nn.BatchNorm1d: _Grouped1d,
    nn.BatchNorm2d: _Grouped2d,
    nn.BatchNorm3d: _Grouped3d,
}


class BatchNorms:
    """All batch norm layers of a model in training. The sums of a window travel with its gradients."""

    def __init__(self, model: nn.Module, rows: int | None) -> None:
        """Converts the layers in place: names, weights and answers in evaluation stay what they are.

        `rows`: of a group, or None for the micro-batch.
        """
        self.groups = Groups()
        self.layers: list[_Grouped] = []
        converted = list(_convert(model, self.groups))
        self.any = bool(converted)
        """Whether the model has a batch norm layer: a window's groups cost nothing without one."""
        for layer in converted:
            if layer.running_mean is not None:
                self.layers.append(layer)
        self.rows = rows if converted else None
        self.channels = [layer.num_features for layer in self.layers]
        self.num_sums = 3 * sum(self.channels)
        """Σ n · (mean - running mean), Σ of the squared distances from the running mean, and n, a channel."""
        self._counts: dict[tuple[int, ...], torch.Tensor] = {}

    def begin(self, sizes: tuple[int, ...]) -> None:
        """Before a micro-batch's forward."""
        self.groups.sizes = sizes
        for layer in self.layers:
            layer.seen.clear()

    @torch.no_grad()
    def collect(self, sums: torch.Tensor) -> None:
        """Add what the forward saw to the window's (num_sums,) sums. Before the last backward, which may send them."""
        if not self.layers:
            return
        shift, squares, count = sums.view(3, -1)
        running = torch.cat([_running(layer)[0] for layer in self.layers])
        for number in range(max(len(layer.seen) for layer in self.layers)):
            picked = [layer.seen[number] if number < len(layer.seen) else _nothing(layer) for layer in self.layers]
            apart = torch.cat([mean for mean, _, _ in picked]).sub_(running)
            values = self._values(tuple(n for _, _, n in picked), sums)
            shift.addcmul_(values, apart)
            squares.addcmul_(values, apart.square_())
            squares.addcmul_((values - 1).clamp_(min=0), torch.cat([variance for _, variance, _ in picked]))
            count.add_(values)
        for layer in self.layers:
            layer.seen.clear()

    @torch.no_grad()
    def move(self, sums: torch.Tensor, skip: bool | torch.Tensor) -> None:
        """Move the running statistics by the sums of all workers, unless the update was skipped (0-d, maybe unread)."""
        if not self.layers or skip is True:
            return
        shift, squares, count = sums.view(3, -1)
        there = count > 0 if skip is False else (count > 0) & (torch.as_tensor(skip) == 0)
        count = count.clamp(min=1)
        mean = shift / count
        variance = (squares / count - mean.square()).clamp_(min=0) * (count / (count - 1).clamp(min=1))
        momentum = self._momentum(sums)
        means, variances = zip(*(_running(layer) for layer in self.layers), strict=True)
        by_mean = torch.where(there, momentum * mean, 0.0)
        by_variance = torch.where(there, momentum * (variance - torch.cat(variances)), 0.0)
        torch._foreach_add_(means, by_mean.split(self.channels))
        torch._foreach_add_(variances, by_variance.split(self.channels))
        made = torch.ones((), device=sums.device) if skip is False else 1 - torch.as_tensor(skip)
        for layer in self.layers:
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.add_(made.to(layer.num_batches_tracked.dtype))

    def buffers(self) -> set[int]:
        """Identities of the buffers that all workers agree on."""
        return {id(buffer) for layer in self.layers for buffer in layer.buffers()}

    def _values(self, counts: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """(C,) numbers of values; a few combinations occur, and each is sent to the device once."""
        if counts not in self._counts:
            each = torch.tensor(counts, dtype=like.dtype).repeat_interleave(torch.tensor(self.channels))
            self._counts[counts] = each.to(like.device)
        return self._counts[counts]

    def _momentum(self, like: torch.Tensor) -> torch.Tensor:
        """(C,) or 0-d; None of a layer means the average over all updates."""
        given = [layer.momentum for layer in self.layers]
        if None not in given and len(set(given)) == 1:
            return torch.full((), float(given[0] or 0.0), dtype=like.dtype, device=like.device)
        each = [
            torch.full((layer.num_features,), layer.momentum, dtype=like.dtype, device=like.device)
            if layer.momentum is not None
            else (1 / (layer.num_batches_tracked.to(like.dtype) + 1)).expand(layer.num_features)  # type: ignore[union-attr]
            for layer in self.layers
        ]
        return torch.cat(each)


def _convert(model: nn.Module, groups: Groups) -> Iterator[_Grouped]:
    for layer in model.modules():
        if type(layer) in KINDS:
            layer.__class__ = KINDS[type(layer)]
        if isinstance(layer, _Grouped):
            layer.groups, layer.seen = groups, []
            yield layer


def _running(layer: _Grouped) -> tuple[torch.Tensor, torch.Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _nothing(layer: _Grouped) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Of a layer that the forward did not use as often as others."""
    return (*_running(layer), 0)
