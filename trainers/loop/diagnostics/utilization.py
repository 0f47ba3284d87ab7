"""How much of the device a training uses: model FLOPs over what the device could do (MFU), and memory.

    MFU = FLOPs of a row's forward and backward · rows a second / (peak FLOP/s of one device · workers)

FLOPs are counted by the formulas of torch.utils.flop_counter in the first update that is inspected: matrix
products, convolutions and attention, as papers count them (norms and activations do not count). The peak comes from a
table of data sheets; on a CPU it is measured by matrix products with the threads that this worker has.

Invariant: a number is counted, measured or looked up, never guessed: for an unknown GPU, or before an inspection, there
is no MFU. Counting changes nothing: the operations are those of the update itself.

Covered: one figure a log record, on rank 0. Not covered: TF32, whose peak is another one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trainers.loop.state import Job

MEASURED_SIZE, MEASURED_TIMES = 384, 4  # 0.11 GFLOP: milliseconds, and past what a call costs

PEAK_HALF: tuple[tuple[str, float], ...] = (
    ("H100 PCIe", 756e12),  # nvidia.com/en-us/data-center/h100: half of the figure with sparsity
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),  # nvidia.com/en-us/data-center/h200
    ("B200", 2.25e15),  # nvidia.com, Blackwell data sheet
    ("A100", 312e12),  # nvidia.com/en-us/data-center/a100
    ("L40S", 362e12),  # nvidia.com, L40S data sheet: half of 733
    ("L4", 121e12),  # nvidia.com, L4 data sheet: half of 242
    ("T4", 65e12),  # nvidia.com, T4 data sheet (fp16)
)
"""Part of the device's name -> dense FLOP/s in bf16 and fp16; the first that fits holds. The larger ones agree with
pytorch/torchtitan's tools/utils.py."""
PEAK_FP32: tuple[tuple[str, float], ...] = (
    ("H100 PCIe", 51e12),
    ("H100 NVL", 60e12),
    ("H100", 67e12),
    ("H200", 67e12),
    ("A100", 19.5e12),
    ("L40S", 91.6e12),
    ("L4", 30.3e12),
    ("T4", 8.1e12),
)
"""The same for fp32 without TF32, from the same data sheets; B200's gives none."""


class Meter:
    """One run's figures for its log records, read on rank 0."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.flops_per_row: float | None = None

    @contextmanager
    def counting(self, rows: int) -> Iterator[None]:
        """Around an update of so many rows of this worker: counts its FLOPs, once a run."""
        if self.flops_per_row is not None or rows == 0:
            yield
            return
        with _FlopCount() as counter:
            yield
        self.flops_per_row = counter.total / rows

    def read(self, samples_per_s: float) -> dict[str, float]:
        """`memory_bytes`, and `flops_per_s` and `mfu` where they are known."""
        found = {"memory_bytes": float(memory_bytes(self.job.device))}
        if self.flops_per_row is not None:
            found["flops_per_s"] = self.flops_per_row * samples_per_s
            if self._peak is not None:
                found["mfu"] = found["flops_per_s"] / (self._peak * self.job.world.size)
        return found

    @cached_property
    def _peak(self) -> float | None:
        return peak_flops(self.job.device, self.job.request.train.precision)


class _FlopCount(TorchDispatchMode):
    """By the formulas of torch.utils.flop_counter, whose own mode imports torch's compiler at its first operation:
    a second of CPU in each worker before the first update."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def memory_bytes(device: torch.device) -> int:
    """Of a GPU the most that tensors have held; of a CPU what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that one device could do; None where it is not known."""
    if device.type == "cpu":
        return measured_peak(torch.float32 if precision == "fp32" else torch.bfloat16)
    if device.type != "cuda":
        return None
    return listed_peak(torch.cuda.get_device_name(device), precision)


def listed_peak(name: str, precision: str) -> float | None:
    """From the table, by a GPU's name."""
    table = PEAK_FP32 if precision == "fp32" else PEAK_HALF
    words = name.split()
    for known, flops in table:
        wanted = known.split()
        if any(words[at : at + len(wanted)] == wanted for at in range(len(words))) or (
            len(wanted) == 1 and any(word.partition("-")[0] == known for word in words)
        ):
            return flops
    return None


def measured_peak(dtype: torch.dtype) -> float:
    """FLOP/s of matrix products on this CPU with this process's threads: the best of a few."""
    square = torch.ones(MEASURED_SIZE, MEASURED_SIZE, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        for _ in range(MEASURED_TIMES):
            started = time.perf_counter()
            torch.mm(square, square)
            best = min(best, time.perf_counter() - started)
    return 2.0 * MEASURED_SIZE**3 / best
