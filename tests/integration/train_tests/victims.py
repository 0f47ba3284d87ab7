"""Models that meet an accident in a training worker: named in requests, so that the workers build them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tests.unit.loop_tests.rig import Noisy


class Victim(Noisy):
    """Rank `rank` does `deed` in forward number `at`, once: the marker file remembers it over restarts."""

    def __init__(self, marker: str, rank: int, at: int, deed: str) -> None:
        super().__init__()
        self.marker, self.rank, self.at, self.deed = Path(marker), rank, at, deed
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        here = dist.get_rank() if dist.is_initialized() else 0
        if self.training and here == self.rank and self.calls == self.at:
            if self.deed == "bug":
                with self.marker.open("a") as file:
                    file.write("raised\n")
                raise ZeroDivisionError("the user's bug")
            if not self.marker.exists():
                self.marker.write_text("killed")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs)


def build_victim(marker: str, rank: int, at: int, deed: str) -> nn.Module:
    return Victim(marker, rank, at, deed)
