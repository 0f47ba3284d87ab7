"""Memory that is short: what counts as that, and giving back all that a failed attempt holds.

An exception holds its traceback, that the frames of the attempt, and they its activations; a frame that keeps the
exception in a variable makes a cycle, which only Python's collector ends, and that is off inside epochs.

Invariant: after `released` nothing of the attempt is reachable from the error, so that the next attempt has the memory
that the failed one had when it began.

Covered: the error, what it was raised from or during, cycles, the allocator's cache of a GPU. Not covered: what the
user's own module keeps.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable

import torch

OUT_OF_MEMORY_TEXTS = (  # of torch, its CPU allocator, cuBLAS and NCCL
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to CUDA malloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that host or device memory was too small."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def caught(work: Callable[[], object]) -> Exception | None:
    """What `work` raised: returned, so that this worker goes on to where the others wait for it.

    Where memory was short, what is returned is the error's text alone, and what the attempt held is free.
    """
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the exchange must be joined, else the other workers wait for ever
        if not is_out_of_memory(error):
            return error
        short = released(error)
    else:
        return None
    gc.collect()  # outside of the handler, which holds the error
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return short


def released(error: BaseException) -> torch.OutOfMemoryError:
    """The same in words, after the frames of `error` and of those behind it have let go of what they held."""
    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or any(one is other for other in chain):
            continue
        chain.append(one)
        waiting += [one.__cause__, one.__context__]
    for one in chain:
        traceback.clear_frames(one.__traceback__)
    return torch.OutOfMemoryError(str(error) or type(error).__name__)
