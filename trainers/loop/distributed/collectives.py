"""Small sums, gathers and broadcasts over all workers, beside the exchange of gradients.

Invariant: every function is collective: all workers call it in the same order, and each blocks until all have. With one
worker none communicates. Nothing is pickled.

Covered: numbers, tensors of one shape, texts. Not covered: gradients (gradient_exchange.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from cluster.errors import WorkerLostError
from trainers.loop.distributed.memory_short import is_out_of_memory
from trainers.loop.distributed.world import World


class lost_workers:
    """`with lost_workers("…")`: an error of a collective becomes WorkerLostError, which blames whom it does not hit;
    memory that is short is this worker's own trouble and stays what it is."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):  # torch's DistBackendError is one too
            raise WorkerLostError(
                f"Cannot {self.doing} with the other workers",
                found=" ".join(str(error).split())[:300],
                rule="all workers take part in every exchange",
                remedy="A worker has died or hangs; the launcher restarts all of them from the last checkpoint.",
            ) from error


def sum_over_workers(values: Sequence[float], world: World, device: torch.device) -> list[float]:
    """Float64 sums. Blocks."""
    if world.size == 1:
        return [float(value) for value in values]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.tensor(list(values), dtype=dtype, device=device)
    with lost_workers("sum metrics"):
        dist.all_reduce(tensor)
    return tensor.tolist()


def gather_stacked(tensor: torch.Tensor, world: World, device: torch.device) -> torch.Tensor:
    """(W, …) on the CPU: every worker's tensor; all have the same shape. Blocks."""
    if world.size == 1:
        return tensor.detach().cpu().unsqueeze(0)
    sent = _plain(tensor.detach().contiguous().to(device))
    received = [torch.empty_like(sent) for _ in range(world.size)]
    with lost_workers("gather state"):
        dist.all_gather(received, sent)
    stacked = torch.stack(received).cpu()
    return torch.view_as_complex(stacked) if tensor.is_complex() else stacked.to(tensor.dtype)


def gather_texts(text: str, world: World, device: torch.device) -> list[str]:
    """Every worker's text. Bytes, not pickles. Blocks."""
    data = text.encode()
    longest = max(int(size) for size in gather_stacked(torch.tensor([len(data)]), world, device))
    row = torch.zeros(max(1, longest), dtype=torch.uint8)
    row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else row[:0]
    rows = gather_stacked(row, world, device)
    return [bytes(item.tolist()).rstrip(b"\0").decode(errors="replace") for item in rows]


def broadcast_from_first(tensors: Sequence[torch.Tensor], world: World) -> None:
    """Give every worker rank 0's values, in place. Blocks."""
    if world.size > 1:
        with torch.no_grad(), lost_workers("broadcast weights"):
            for tensor in tensors:
                dist.broadcast(_plain(tensor.detach()), 0)


def average_buffers(buffers: Sequence[torch.Tensor], world: World) -> None:
    """Buffers that each worker moves by itself: the mean over workers for floats, the largest for counters. Blocks.

    A float buffer on which all workers agree keeps its bytes: what is averaged is the distance from rank 0's.
    """
    if world.size == 1:
        return
    with torch.no_grad(), lost_workers("average buffers"):
        for buffer in map(_plain, buffers):
            if not buffer.is_floating_point():
                dist.all_reduce(buffer, op=dist.ReduceOp.MAX)
                continue
            first = buffer.clone()
            dist.broadcast(first, 0)
            apart = torch.where(buffer == first, torch.zeros_like(buffer), buffer - first)  # not ∞ - ∞
            dist.all_reduce(apart)
            buffer.copy_(first + apart / world.size)


def mean_of_workers(rows: torch.Tensor) -> torch.Tensor:
    """The same of (W, …) that were gathered: equal rows keep their bytes."""
    if not (rows.is_floating_point() or rows.is_complex()):
        return rows.to(torch.uint8).amax(dim=0).bool() if rows.dtype == torch.bool else rows.amax(dim=0)
    return rows[0] + torch.where(rows == rows[0], torch.zeros_like(rows), rows - rows[0]).mean(dim=0)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as numbers that every backend adds up: gloo has no complex ones and no truth values."""
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
