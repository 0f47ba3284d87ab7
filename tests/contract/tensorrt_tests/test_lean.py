"""Level L4: NVIDIA's lean runtime library of TensorRT 11 loads on a machine without a driver, and tells its version.

Proves that wheel and loader are sound. Running a plan needs a driver.
"""

from __future__ import annotations

import ctypes

import pytest

from tests.contract.tensorrt_tests.bindings import LEAN, VERSIONS, fetched


@pytest.mark.slow
@pytest.mark.tensorrt_level("L4")
def test_the_lean_runtime_of_tensorrt_11_loads_and_tells_its_version() -> None:
    version = VERSIONS[-1]
    (path,) = fetched(version, LEAN, level="L4").rglob("libnvinfer_lean.so.*")
    major, minor, patch, _ = (int(part) for part in version.split("."))
    assert ctypes.CDLL(str(path)).getInferLibVersion() == major * 10_000 + minor * 100 + patch
