"""One worker's failure is every worker's: all learn of it together, and all raise or all go on.

Invariant: the culprit raises its own error, the others PeerFailedError with the culprit's traceback; no worker waits
for one that has failed.

Covered: errors of the user's code and memory that is short. Not covered: a process that dies (WorkerLostError).
"""

from __future__ import annotations

import traceback

import torch

from cluster.errors import PeerFailedError
from trainers.loop.distributed.collectives import gather_texts, sum_over_workers
from trainers.loop.distributed.memory_short import is_out_of_memory
from trainers.loop.distributed.world import World


def agreed(attempted: str, error: Exception | None, world: World, device: torch.device) -> bool:
    """Whether memory was short on any worker; raises on all what another error of one of them asks for. Blocks."""
    if not sum_over_workers([error is not None], world, device)[0]:
        return False
    raise_together(attempted, error, world, device)
    return True


def raise_together(attempted: str, error: Exception | None, world: World, device: torch.device) -> None:
    """All workers come here when one of them failed. Returns only where memory was short and nothing else. Blocks."""
    if world.size == 1:
        kinds, texts = [_kind(error)], [""]
    else:
        text = f"{_kind(error)}\n{''.join(traceback.format_exception(error)) if error else ''}"
        found = [item.partition("\n") for item in gather_texts(text, world, device)]
        kinds, texts = [kind for kind, _, _ in found], [rest for _, _, rest in found]
    if "error" not in kinds:
        return
    if error is not None and _kind(error) == "error":
        raise error
    culprit = kinds.index("error")
    raise PeerFailedError(
        attempted,
        found=f"worker {culprit} failed: {texts[culprit].strip().splitlines()[-1]}",
        rule="all workers stop together when one fails",
        remedy="Mend the cause in that worker's traceback.",
        details={"rank": culprit, "traceback": texts[culprit]},
    )


def _kind(error: Exception | None) -> str:
    if error is None:
        return "fine"
    return "memory" if is_out_of_memory(error) else "error"
