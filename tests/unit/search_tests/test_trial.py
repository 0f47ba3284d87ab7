"""What a trial tells about how it ended."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.spec.resolve import BatchPlan
from trainers.search.trial import is_out_of_memory, report_outcome, trial_batch


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_errors_of_memory_count_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_torchs_own_memory_error_counts() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))


def test_an_outcome_is_always_reported_with_a_finite_value() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.reports: list[dict[str, Any]] = []

        def report(self, values: dict[str, Any]) -> None:
            self.reports.append(values)

    recorder = Recorder()
    report_outcome(recorder, {"epoch": 0, "value": None}, "oom", "x")
    report_outcome(recorder, {"epoch": 3, "value": 0.5}, "diverged", "y")
    assert [item["value"] for item in recorder.reports] == [0.0, 0.5]


def test_one_worker_makes_the_same_updates_in_micro_batches_of_the_same_size() -> None:
    plan = BatchPlan(
        batch_size_global=96,
        batch_size_per_worker=16,
        workers=3,
        accumulation_steps=2,
        updates_per_epoch=10,
        updates_total=50,
    )
    single = trial_batch(plan)
    assert (single.workers, single.batch_size_per_worker, single.accumulation_steps) == (1, 16, 6)
    assert (single.batch_size_global, single.updates_total) == (96, 50)
