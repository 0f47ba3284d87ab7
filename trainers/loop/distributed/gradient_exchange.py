"""All gradients of a worker in one flat buffer, and one sum of it over all workers per update.

    flat = [ bucket 0: gradients of the last layers | … | bucket n | batch norm's sums | failed, unreached, loss, stop ]

`parameter.grad` are views into it, so that backward writes where the exchange reads: no copy. Only in a window's last
micro-batch are buckets sent, each as soon as backward has completed it, in the order of the buffer: that is what DDP
does around `no_sync`, with exactly one all-reduce per bucket and window. The last values travel in the last
bucket: whether a worker failed before its part was complete, how many parameters its backward has not reached, the
window's summed loss, and whether a worker is to stop.

A parameter that no backward of a window has reached, on any worker, is left out of the step, as torch's optimizers do
where `grad` is None: neither decay nor moments move it. Each `grad` counts its own in-place changes, so that to know
them costs a comparison of two lists; only a window with such parameters has one more collective.

Invariant: every worker sends every bucket once per attempt at a window, in the same order, whatever happened to it
before: with no rows it brings zeros, after an error zeros and `failed`, and all discard the window. So none waits
for one that raised (in backward neither), and none runs a forward only to take part (batch norm never sees padding).

Covered: any number of workers on gloo or NCCL, one worker without a process group, overlap with backward, bf16 on
the wire. Not covered: sharded models.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from cluster.spec.train import ExchangeSpec
from trainers.loop.distributed.collectives import lost_workers
from trainers.loop.distributed.memory_short import caught, is_out_of_memory
from trainers.loop.distributed.world import World

NUM_SCALARS = 4  # of `ReducedScalars`
TIME_OVER = float(1 << 20)  # beside votes of 1 in a float32 that is exact up to 2^24


@dataclass(frozen=True)
class ReducedScalars:
    """What the exchange sums over workers beside the gradients. 0-d views into the buffer, valid until the next
    `clear`: reading one, and waiting for the device, is the caller's choice."""

    failed: torch.Tensor
    unreached: torch.Tensor
    """Parameters that a worker's backward has not reached, added up."""
    loss_sum: torch.Tensor
    stop: torch.Tensor
    flags: torch.Tensor
    """(2,) `failed` and `unreached`, to be read at once."""


@dataclass
class Bucket:
    """A slice of the buffer that is sent at once."""

    start: int
    stop: int
    parameters: int
    """How many parameters it holds."""
    missing: int = 0
    """How many of them backward has yet to finish in the armed micro-batch."""


class GradientExchange:
    """Owns the flat gradient of a model."""

    def __init__(self, model: nn.Module, world: World, spec: ExchangeSpec, num_sums: int = 0) -> None:
        """`num_sums`: room for batch norm's sums, which travel with the gradients."""
        self.world = world
        self.half = spec.wire == "bf16"
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        first = self.parameters[0]
        count = sum(parameter.numel() for parameter in self.parameters)
        self.flat = torch.zeros(count + num_sums + NUM_SCALARS, dtype=first.dtype, device=first.device)
        self.gradient = self.flat[:count]
        self.norm_sums = self.flat[count : count + num_sums]
        self._full_precision = self.flat[count:]  # with batch norm's sums: what never travels in half precision
        scalars = self.flat[count + num_sums :]
        failed, unreached, loss_sum, stop = scalars.unbind()
        self.scalars = ReducedScalars(failed, unreached, loss_sum, stop, flags=scalars[:2])
        on_wire = count if self.half and world.size > 1 else 0
        self._wire = torch.empty(on_wire, dtype=torch.bfloat16, device=first.device)
        self.gradients: list[torch.Tensor] = []
        """Of `parameters`, in their order."""
        self._buckets: list[Bucket] = []
        self._next = 0
        self._armed = False
        self._works: list[tuple[dist.Work, torch.Tensor, torch.Tensor | None]] = []
        self.num_collectives = 0
        """All-reduces so far."""
        self.unreached: frozenset[int] = frozenset()
        """`id` of the parameters that no backward of the window has reached, once it is settled."""
        self.missing = 0
        """How many this worker's own backward has not reached."""
        self._versions: list[int] = []
        self._lay_out(max(1, int(spec.bucket_mib * (1 << 20)) // self.flat.element_size()))

    def clear(self) -> None:
        """Before the first backward of a window."""
        self.flat.zero_()
        self._next, self._armed, self.missing = 0, False, 0
        self._versions = [gradient._version for gradient in self.gradients]

    def arm(self) -> None:
        """Before the forward of this worker's last micro-batch: from now on complete buckets are sent."""
        self._armed = self.world.size > 1
        for bucket in self._buckets:
            bucket.missing = bucket.parameters

    def add_loss(self, loss_sum: torch.Tensor) -> None:
        """Add a micro-batch's summed loss to the scalars. Before the last backward, which may send them."""
        self.scalars.loss_sum.add_(loss_sum.detach())

    def fail(self) -> None:
        """This worker has nothing valid to bring: what it has not sent is zero but for the flag."""
        self._armed = False
        start = self._buckets[self._next].start if self._next < len(self._buckets) else len(self.gradient)
        self.flat[start:].zero_()
        self.scalars.failed.fill_(1)

    def note_unreached(self) -> None:
        """After this worker's last backward of a window with rows of its own."""
        self.missing = sum(self._same_versions())
        if self.missing and self.world.size > 1:
            self.scalars.unreached.fill_(self.missing)

    def settle_unreached(self, number: float, *, had_rows: bool) -> None:
        """After `reduce`: which parameters are left out of the step. `number`: the sum, collective unless it is 0."""
        self.unreached = frozenset()
        if not number:
            return
        missing = list(self._same_versions()) if had_rows else [True] * len(self.parameters)
        if self.world.size > 1:
            reached = torch.tensor(missing, device=self.flat.device).logical_not().float()
            with lost_workers("agree on parameters without a gradient"):
                dist.all_reduce(reached)
            self.num_collectives += 1
            missing = (reached == 0).tolist()
        self.unreached = frozenset(id(p) for p, gone in zip(self.parameters, missing, strict=True) if gone)

    def _same_versions(self) -> map[bool]:
        """Whether each gradient has not changed since `clear`."""
        return map(operator.eq, self._versions, [gradient._version for gradient in self.gradients])

    def want_stop(self, vote: float = 1.0) -> None:
        """Before the last backward. `vote`: 1 of a worker that is to stop, `TIME_OVER` of one whose clock says so."""
        self.scalars.stop.fill_(vote)

    def reduce(self) -> ReducedScalars:
        """Send what is not sent yet and wait for all sums: blocks for all workers. Raises WorkerLostError."""
        if self.world.size > 1:
            with lost_workers("exchange gradients"):
                self._armed = False
                while self._next < len(self._buckets):
                    self._send_or_fail(self._send)
                self._send_or_fail(self._send_scalars)
                for work, target, wire in self._works:
                    work.wait()
                    if wire is not None:
                        target.copy_(wire)
            self._works.clear()
        return self.scalars

    def _lay_out(self, bucket_elements: int) -> None:
        """Reverse order of the model: backward completes the last layers first."""
        at = 0
        bucket = Bucket(0, 0, 0)
        for parameter in reversed(self.parameters):
            size = parameter.numel()
            if bucket.parameters and bucket.stop - bucket.start + size > bucket_elements:
                self._buckets.append(bucket)
                bucket = Bucket(at, at, 0)
            # `.data`: a count of changes of its own, and not the buffer's
            parameter.grad = _like(self.flat[at : at + size], parameter).data
            at += size
            bucket.stop, bucket.parameters = at, bucket.parameters + 1
            self._watch(parameter, bucket)
        self._buckets.append(bucket)
        self.gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _watch(self, parameter: nn.Parameter, bucket: Bucket) -> None:
        if self.world.size == 1:
            return

        def done(_: torch.Tensor) -> None:
            if not self._armed:
                return
            bucket.missing -= 1
            with lost_workers("exchange gradients"):
                while self._next < len(self._buckets) - 1 and self._buckets[self._next].missing == 0:
                    self._send()

        parameter.register_post_accumulate_grad_hook(done)

    def _send(self) -> None:
        """The next bucket; the last one takes the scalars with it where they travel in the same datatype."""
        bucket = self._buckets[self._next]
        last = self._next + 1 == len(self._buckets)
        stop = len(self.flat) if last and not self.half else bucket.stop
        target = self.flat[bucket.start : stop]
        self._all_reduce(target, self._wire[bucket.start : stop].copy_(target) if self.half else None)
        self._next += 1  # a bucket that memory did not suffice for is not sent

    def _send_scalars(self) -> None:
        if self.half:
            self._all_reduce(self._full_precision, None)

    def _send_or_fail(self, send: Callable[[], None]) -> None:
        """Where memory is short for a message, the others get one all the same: it says that this worker failed."""
        error = caught(send)
        if error is None:
            return
        if not is_out_of_memory(error):
            raise error
        self.fail()
        send()

    def _all_reduce(self, target: torch.Tensor, wire: torch.Tensor | None) -> None:
        work = dist.all_reduce(target if wire is None else wire, async_op=True)
        assert work is not None
        self._works.append((work, target, wire))
        self.num_collectives += 1


def _like(piece: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A piece of the buffer with the shape and the memory order of a parameter: fused optimizers walk through
    parameter and gradient in memory order, so a channels_last weight needs a channels_last gradient."""
    dense = torch.empty_like(parameter, device="meta").stride()
    return piece.as_strided(parameter.shape, dense, piece.storage_offset())
