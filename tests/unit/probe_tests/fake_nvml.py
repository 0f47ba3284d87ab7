"""A module with the names, errors and shapes of nvidia-ml-py 13.615, for two GPUs that support different things."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """Base of the binding's errors."""


class NVMLError_LibraryNotFound(NVMLError):
    def __str__(self) -> str:
        return "NVML Shared Library Not Found"


class NVMLError_NotSupported(NVMLError):
    def __str__(self) -> str:
        return "Not Supported"


class NVMLError_FunctionNotFound(NVMLError):
    def __str__(self) -> str:
        return "Function Not Found"


class NVMLError_Unknown(NVMLError):
    def __str__(self) -> str:
        return "Unknown Error"


class FakeNvml:
    """GPU 0 supports everything; GPU 1 is a consumer card with an old driver; GPU 2, if asked for, is in MIG mode."""

    NVMLError = NVMLError
    NVMLError_LibraryNotFound = NVMLError_LibraryNotFound
    NVMLError_NotSupported = NVMLError_NotSupported
    NVMLError_FunctionNotFound = NVMLError_FunctionNotFound
    nvmlMemory_v2 = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    def __init__(self, *, devices: int = 2, init: NVMLError | None = None) -> None:
        self.devices, self.init, self.shut_down = devices, init, 0

    def nvmlInit(self) -> None:
        if self.init:
            raise self.init

    def nvmlShutdown(self) -> None:
        self.shut_down += 1

    def nvmlDeviceGetCount(self) -> int:
        return self.devices

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13020

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"gpu{index}"

    def nvmlDeviceGetUUID(self, handle: str) -> str | bytes:
        return {"gpu0": "GPU-aaa", "gpu1": b"GPU-bbb", "gpu2": "GPU-ccc"}.get(handle, f"MIG-{handle}")

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"name of {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> Any:
        if handle == "gpu1" and version:
            raise NVMLError_FunctionNotFound
        reserved = 1 << 20 if version else 0
        return SimpleNamespace(total=80 << 30, reserved=reserved, used=1 << 30, free=(79 << 30) - reserved)

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:
        if handle.startswith("slice"):
            raise NVMLError_NotSupported
        return (9, 0)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        if handle != "gpu0":
            raise NVMLError_NotSupported
        return SimpleNamespace(gpu=0, memory=0)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 41

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        if handle == "gpu1":
            raise NVMLError_Unknown
        return 71_500

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> int:
        if handle == "gpu1":
            raise NVMLError_NotSupported
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=70, usedGpuMemory=None), SimpleNamespace(pid=7, usedGpuMemory=5)]

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:
        if handle == "gpu1":
            raise NVMLError_NotSupported
        return (1, 1) if handle == "gpu2" else (0, 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        if index > 1:
            raise NVMLError_Unknown
        return f"slice{index}"
