"""GPU readings: keyed by UUID, and a value that could not be read is None with the reason, never 0."""

from __future__ import annotations

import pynvml
import pytest

from cluster.probe.gpus import NvmlSource
from tests.unit.probe_tests.fake_nvml import FakeNvml, NVMLError_LibraryNotFound, NVMLError_Unknown


def source(**more: object) -> NvmlSource:
    fake = FakeNvml(**more)  # type: ignore[arg-type]
    return NvmlSource(load=lambda: fake)


def test_a_card_that_supports_everything() -> None:
    reading = source().read()
    assert (reading.driver_version, reading.cuda_driver_version) == ("580.65", "13.2")
    gpu = (reading.gpus or ())[0]
    assert gpu.uuid == "GPU-aaa"
    assert gpu.memory_free_bytes == (79 << 30) - (1 << 20), "the driver's reserve is not free memory"
    assert (gpu.utilization_percent, gpu.power_watts, gpu.compute_capability) == (0, 71.5, (9, 0))
    assert gpu.processes == (7, 70)
    assert gpu.reasons == {}


def test_what_a_card_does_not_support_is_null_with_a_reason_and_spoils_nothing() -> None:
    gpu = (source().read().gpus or ())[1]
    assert gpu.uuid == "GPU-bbb"
    assert gpu.memory_total_bytes == 80 << 30, "an old driver's v1 call is used"
    assert (gpu.utilization_percent, gpu.power_watts, gpu.ecc_uncorrected) == (None, None, None)
    assert gpu.reasons == {
        "utilization_percent": "Not Supported",
        "power_watts": "Unknown Error",
        "ecc_uncorrected": "Not Supported",
    }


def test_a_mig_gpu_is_its_slices() -> None:
    gpus = source(devices=3).read().gpus or ()
    assert [gpu.uuid for gpu in gpus] == ["GPU-aaa", "GPU-bbb", "MIG-slice0", "MIG-slice1"]
    assert gpus[2].parent_uuid == "GPU-ccc"
    assert gpus[2].compute_capability == (9, 0), "a slice has the capability of its GPU"
    assert gpus[2].utilization_percent is None


def test_no_driver_is_no_gpu_and_a_failing_driver_is_unknown() -> None:
    absent = source(init=NVMLError_LibraryNotFound()).read()
    assert absent.gpus == ()
    assert "no NVIDIA driver" in absent.reasons["gpus"]
    broken = source(init=NVMLError_Unknown()).read()
    assert broken.gpus is None
    assert "Unknown Error" in broken.reasons["gpus"]


def test_without_the_binding_it_is_unknown() -> None:
    def load() -> None:
        raise ImportError("No module named 'pynvml'")

    reading = NvmlSource(load=load).read()
    assert reading.gpus is None
    assert "not installed" in reading.reasons["gpus"]


def test_nvml_is_shut_down_after_each_reading() -> None:
    fake = FakeNvml()
    probe = NvmlSource(load=lambda: fake)
    probe.read()
    probe.read()
    assert fake.shut_down == 2


@pytest.mark.parametrize("name", [name for name in dir(FakeNvml) if name.startswith(("nvml", "NVML"))])
def test_the_fake_has_no_name_that_the_real_binding_lacks(name: str) -> None:
    assert hasattr(pynvml, name)
