"""GPUs of this host by NVML, keyed by UUID. Facts only.

Invariant: every NVML call may fail by itself; a failed one leaves None and the reason, never 0, and never spoils the
rest (vendors' cards support different subsets).

Covered: driver, memory (v2 accounting, so that the driver's reserve is not counted as used), compute capability,
utilization, temperature, power, ECC, MIG slices, processes. Not covered: health events (XID), links.
Nothing here has run on a GPU in this project's tests: the calls were checked to exist in nvidia-ml-py 13.615, and
their behavior is tested against a fake module with the same names and errors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, Protocol

from cluster.probe.probe import GpuReading
from cluster.spec.base import StrictSpec

MILLIWATTS_PER_WATT = 1000.0


class GpuSourceReading(StrictSpec):
    """What NVML said about a host."""

    driver_version: str | None = None
    cuda_driver_version: str | None = None
    gpus: tuple[GpuReading, ...] | None = None
    reasons: dict[str, str] = {}


class GpuSource(Protocol):
    """Reads the GPUs of this host. Never raises."""

    def read(self) -> GpuSourceReading: ...


def _import_pynvml() -> ModuleType:
    return importlib.import_module("pynvml")


@dataclass(frozen=True)
class NvmlSource:
    """NVML through nvidia-ml-py. Initialized anew for each reading: NVML's state does not survive a fork."""

    load: Callable[[], Any] = field(default=_import_pynvml)

    def read(self) -> GpuSourceReading:
        try:
            nvml = self.load()
        except ImportError as error:
            return _nothing(f"nvidia-ml-py is not installed ({error})", known=False)
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            absent = _is(nvml, error, "LibraryNotFound", "DriverNotLoaded", "NoGpuFound")
            why = "no NVIDIA driver on this host" if absent else "NVML did not start"
            return _nothing(f"{why} ({error})", known=absent)
        try:
            return _read_all(nvml)
        finally:
            nvml.nvmlShutdown()


def _nothing(reason: str, *, known: bool) -> GpuSourceReading:
    """No GPU for sure (an empty list), or not known (None)."""
    fields = ("gpus", "driver_version", "cuda_driver_version")
    return GpuSourceReading(gpus=() if known else None, reasons=dict.fromkeys(fields, reason))


def _read_all(nvml: Any) -> GpuSourceReading:
    reasons: dict[str, str] = {}
    read = _Reader(nvml, reasons)
    count = read("gpus", nvml.nvmlDeviceGetCount)
    gpus: list[GpuReading] = []
    for index in range(count or 0):
        handle = read(f"gpu {index}", partial(nvml.nvmlDeviceGetHandleByIndex, index))
        gpus.extend(_devices(nvml, handle, reasons) if handle is not None else [])
    cuda = read("cuda_driver_version", nvml.nvmlSystemGetCudaDriverVersion_v2)
    if count == 0:
        reasons["gpus"] = "the driver is loaded and lists no GPU"
    return GpuSourceReading(
        driver_version=_text(read("driver_version", nvml.nvmlSystemGetDriverVersion)),
        cuda_driver_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        gpus=None if count is None else tuple(gpus),
        reasons=reasons,
    )


def _devices(nvml: Any, handle: Any, reasons: dict[str, str]) -> list[GpuReading]:
    """The GPU, or its slices when it is in MIG mode: only slices can be used then."""
    whole = _device(nvml, handle, parent=None)
    if whole is None:
        reasons["gpus"] = "a GPU has no readable UUID and is left out"
        return []
    silent: dict[str, str] = {}
    mode = _Reader(nvml, silent)("mig", lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    if mode != 1:
        return [whole]
    slices = []
    for index in range(_Reader(nvml, silent)("mig", lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
        part = _Reader(nvml, silent)("slice", partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index))
        reading = _device(nvml, part, parent=whole) if part is not None else None
        slices.extend([reading] if reading else [])
    return slices


def _device(nvml: Any, handle: Any, *, parent: GpuReading | None) -> GpuReading | None:
    reasons: dict[str, str] = {}
    read = _Reader(nvml, reasons)
    uuid = _text(read("uuid", lambda: nvml.nvmlDeviceGetUUID(handle)))
    if uuid is None:
        return None
    memory = read("memory", lambda: _memory(nvml, handle))
    if memory is None:
        why = reasons.pop("memory")
        reasons |= dict.fromkeys(("memory_total_bytes", "memory_free_bytes", "memory_used_bytes"), why)
    power = read("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    capability = read("compute_capability", lambda: tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)))
    return GpuReading(
        uuid=uuid,
        name=_text(read("name", lambda: nvml.nvmlDeviceGetName(handle))),
        memory_total_bytes=memory and int(memory.total),
        memory_free_bytes=None if memory is None else int(memory.free),
        memory_used_bytes=None if memory is None else int(memory.used),
        compute_capability=capability or (parent.compute_capability if parent else None),
        utilization_percent=read("utilization_percent", lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        temperature_celsius=read(
            "temperature_celsius", lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
        power_watts=None if power is None else power / MILLIWATTS_PER_WATT,
        ecc_uncorrected=read("ecc_uncorrected", lambda: _ecc(nvml, handle)),
        parent_uuid=parent.uuid if parent else None,
        processes=read("processes", lambda: _processes(nvml, handle)),
        reasons=reasons,
    )


def _memory(nvml: Any, handle: Any) -> Any:
    """v2 keeps the driver's reserve apart from what processes use; older drivers know v1 only."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError as error:
        if not _is(nvml, error, "FunctionNotFound", "NotSupported", "ArgumentVersionMismatch"):
            raise
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _ecc(nvml: Any, handle: Any) -> int:
    return int(
        nvml.nvmlDeviceGetTotalEccErrors(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    )


def _processes(nvml: Any, handle: Any) -> tuple[int, ...]:
    return tuple(sorted(int(process.pid) for process in nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)))


@dataclass(frozen=True)
class _Reader:
    """Calls a reading function; notes why it failed."""

    nvml: Any
    reasons: dict[str, str]

    def __call__(self, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self.nvml.NVMLError as error:
            self.reasons[name] = str(error)
            return None


def _is(nvml: Any, error: BaseException, *names: str) -> bool:
    """Whether the error is one of `NVMLError_<name>`; a name that this binding lacks does not match."""
    classes = tuple(found for name in names if (found := getattr(nvml, f"NVMLError_{name}", None)))
    return isinstance(error, classes)


def _text(value: Any) -> str | None:
    """Older bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else value
