"""Models that meet an accident in a training worker: named in requests, so that the workers build them."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import nn

from tests.unit.loop_tests.rig import Noisy, build_net

ENDS_S = 120.0


class Victim(Noisy):
    """Rank `rank` does `deed` in forward number `at`, once: the marker file remembers it over restarts.

    Every rank writes down which rows it was given, one line a micro-batch.
    """

    def __init__(self, marker: str, rank: int, at: int, deed: str) -> None:
        super().__init__()
        self.marker, self.rank, self.at, self.deed = Path(marker), rank, at, deed
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            here = dist.get_rank() if dist.is_initialized() else 0
            with self.marker.with_name(f"rows.{here}").open("a") as file:
                file.write(hashlib.sha256(inputs.numpy().tobytes()).hexdigest() + "\n")
            if here == self.rank and self.calls == self.at:
                self.meet()
        return super().forward(inputs)

    def meet(self) -> None:
        """The accident."""
        if self.deed == "bug":
            with self.marker.open("a") as file:
                file.write("raised\n")
            raise ZeroDivisionError("the user's bug")
        if self.marker.exists():
            return
        self.marker.write_text("killed")
        for pid in self.targets():
            os.kill(pid, signal.SIGKILL)
        threading.Event().wait(ENDS_S)  # inside the window, until this worker ends with whom it depends on
        raise AssertionError("a worker whose controller or driver is gone lives on")

    def targets(self) -> list[int]:
        """Whom to kill: this worker, Ray Train's controller of this Ray, or the driver (who left its number)."""
        if self.deed == "driver":
            return [int(self.marker.with_name("driver.pid").read_text())]
        if self.deed == "controller":
            siblings = psutil.Process().parent().children()  # of the raylet that started this worker: nobody else's
            return [each.pid for each in siblings if "TrainController" in " ".join(each.cmdline())]
        return [os.getpid()]


def build_victim(marker: str, rank: int, at: int, deed: str) -> nn.Module:
    return Victim(marker, rank, at, deed)


class Paced(nn.Module):
    """Takes its time until a file appears, so that something can happen meanwhile."""

    def __init__(self, until: str, wait_s: float) -> None:
        super().__init__()
        self.net, self.until, self.wait_s = build_net(), Path(until), wait_s

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and not self.until.exists():
            threading.Event().wait(self.wait_s)
        return self.net(inputs)


def build_paced(until: str, wait_s: float) -> nn.Module:
    return Paced(until, wait_s)
