"""All gradients of a worker in one flat buffer, and one sum of it over all workers per update.

    flat = [ gradients of all parameters | failed | loss sum | stop ]

`parameter.grad` are views into it, so that backward writes where the exchange reads: no copy, one collective per
bucket of at most BUCKET_BYTES. The last values ride along for free: whether a worker failed before the exchange, the
window's summed loss, and whether someone wants to stop.

Invariant: every worker joins exactly one exchange per attempt at a window, whatever happened to it before: with no
rows it brings zeros, after an error zeros and `failed`. So none waits for one that raised, and none runs a forward
only to take part (batch norm never sees padding).

Covered: any number of workers on gloo or NCCL, one worker without a process group. Not covered: overlap with
backward (overlap.py does that with DDP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from cluster.errors import WorkerLostError
from trainers.loop.sampler import World

BUCKET_BYTES = 25 << 20  # DDP's default bucket: large enough for bandwidth, small enough to pipeline
FAILED, LOSS, STOP = range(3)
NUM_RIDERS = 3


@dataclass(frozen=True)
class Riders:
    """What came back beside the gradients, summed over workers. 0-d tensors: reading one is the caller's choice."""

    failed: torch.Tensor
    loss_sum: torch.Tensor
    stop: torch.Tensor


class GradientExchange:
    """Owns the flat gradient of a model."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self.world = world
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        first = self.parameters[0]
        count = sum(parameter.numel() for parameter in self.parameters)
        self.flat = torch.zeros(count + NUM_RIDERS, dtype=first.dtype, device=first.device)
        self.gradient = self.flat[:count]
        self._riders = self.flat[count:]
        at = 0
        for parameter in self.parameters:
            size = parameter.numel()
            parameter.grad = self.flat[at : at + size].view_as(parameter)
            at += size
        self.num_collectives = 0
        """All-reduces so far."""

    def clear(self) -> None:
        """Before the first backward of a window."""
        self.flat.zero_()

    def add_loss(self, loss_sum: torch.Tensor) -> None:
        """Add a micro-batch's summed loss to what rides along."""
        self._riders[LOSS] += loss_sum.detach()

    def fail(self) -> None:
        """This worker has nothing valid to bring: everything it has is zero but the flag."""
        self.flat.zero_()
        self._riders[FAILED] = 1

    def want_stop(self) -> None:
        self._riders[STOP] = 1

    def reduce(self) -> Riders:
        """Sum over all workers, in place. Blocks until all have come. Raises WorkerLostError."""
        if self.world.size > 1:
            with lost_workers("exchange gradients"):
                size = BUCKET_BYTES // self.flat.element_size()
                works = [dist.all_reduce(bucket, async_op=True) for bucket in self.flat.split(size)]
                for work in works:
                    work.wait()
            self.num_collectives += len(works)
        return Riders(self._riders[FAILED], self._riders[LOSS], self._riders[STOP])


class lost_workers:
    """`with lost_workers("…")`: an error of a collective becomes WorkerLostError, which blames whom it does not hit."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):  # torch raises this and its DistBackendError
            raise WorkerLostError(
                f"Cannot {self.doing} with the other workers",
                found=" ".join(str(error).split())[:300],
                rule="all workers take part in every exchange",
                remedy="A worker has died or hangs; the launcher restarts all of them from the last checkpoint.",
            ) from error


def current_world() -> World:
    """Of the initialized process group, or one worker."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def sum_over_workers(values: Sequence[float], world: World, device: torch.device) -> list[float]:
    """Float64 sums. Blocks."""
    if world.size == 1:
        return [float(value) for value in values]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.tensor(list(values), dtype=dtype, device=device)
    with lost_workers("sum metrics"):
        dist.all_reduce(tensor)
    return tensor.tolist()


def stack_over_workers(tensor: torch.Tensor, world: World, device: torch.device) -> torch.Tensor:
    """(W, …) on the CPU: every worker's tensor; all have the same shape. Blocks."""
    if world.size == 1:
        return tensor.detach().cpu().unsqueeze(0)
    sent = tensor.detach().contiguous().to(device)
    received = [torch.empty_like(sent) for _ in range(world.size)]
    with lost_workers("gather state"):
        dist.all_gather(received, sent)
    return torch.stack(received).cpu()


def texts_over_workers(text: str, world: World, device: torch.device) -> list[str]:
    """Every worker's text. Bytes, not pickles. Blocks."""
    data = text.encode()
    longest = max(int(size) for size in stack_over_workers(torch.tensor([len(data)]), world, device))
    row = torch.zeros(max(1, longest), dtype=torch.uint8)
    row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else row[:0]
    rows = stack_over_workers(row, world, device)
    return [bytes(item.tolist()).rstrip(b"\0").decode(errors="replace") for item in rows]


def same_everywhere(tensors: Sequence[torch.Tensor], world: World) -> None:
    """Give every worker rank 0's values, in place. Blocks."""
    if world.size > 1:
        with lost_workers("broadcast weights"):
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def average_buffers(model: nn.Module, world: World) -> None:
    """Batch norm statistics: the mean over workers for floats, the largest for counters. Blocks."""
    if world.size == 1:
        return
    with torch.no_grad(), lost_workers("average batch norm statistics"):
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world.size
            else:
                dist.all_reduce(buffer, op=dist.ReduceOp.MAX)
