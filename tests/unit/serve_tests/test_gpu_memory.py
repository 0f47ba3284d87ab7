"""A model that does not fit a GPU is refused before it is loaded, with numbers and names."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import MemoryShortError
from cluster.probe.gpus import GpuSourceReading
from cluster.probe.probe import GpuReading
from serve.models.gpu_memory import CONTEXT_BYTES, GIB, check_gpu_memory


class OneGpu:
    """A source with one GPU as told."""

    def __init__(self, **values: Any) -> None:
        self._gpu = GpuReading(uuid="GPU-1", name="Fake 80G", **values)

    def read(self) -> GpuSourceReading:
        return GpuSourceReading(gpus=(self._gpu,))


class NoNvml:
    def read(self) -> GpuSourceReading:
        return GpuSourceReading(gpus=None, reasons={"gpus": "NVML did not start"})


def test_a_model_that_does_not_fit_is_refused_with_numbers_and_holders() -> None:
    source = OneGpu(memory_total_bytes=80 * GIB, memory_free_bytes=10 * GIB, processes=(1, 2**22 - 1))
    check_gpu_memory("cuda:0", 10 * GIB - CONTEXT_BYTES, source)
    with pytest.raises(MemoryShortError) as caught:
        check_gpu_memory("cuda:0", 12 * GIB, source)
    message = str(caught.value)
    for words in ("10.00 of 80.00 GiB are free", "needs 12.00 GiB", "(pid 1)", f"pid {2**22 - 1}"):
        assert words in message


@pytest.mark.parametrize(
    "source", [NoNvml(), OneGpu(memory_total_bytes=None, memory_free_bytes=None, reasons={"memory": "lying"})]
)
def test_memory_that_cannot_be_read_is_not_judged(source: Any) -> None:
    check_gpu_memory("cuda:0", 10**15, source)
    check_gpu_memory("cpu", 10**15, source)
