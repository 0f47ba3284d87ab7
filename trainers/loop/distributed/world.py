"""This worker's place among all workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This worker's place among all workers."""

    rank: int = 0
    size: int = 1


def current_world() -> World:
    """Of the initialized process group, or one worker."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()
