"""Tests that need an NVIDIA GPU: `pytest -m gpu tests/gpu`. They skip, loudly, where there is none.

A run of the TensorRT tests leaves `tensorrt-evidence.json` (level L5 of docs/tensorrt.md) in MANTA_GPU_EVIDENCE, or in
the current folder: what ran, on which GPU, driver and versions, and what it measured.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.probe.gpus import NvmlSource

EVIDENCE = "tensorrt-evidence.json"


@pytest.fixture(scope="session")
def cuda() -> Any:
    """torch with CUDA, or a skip that says so."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("GPU TESTS NOT RUN: CUDA is not available to torch")
    return torch


@pytest.fixture(scope="session")
def tensorrt(cuda: Any) -> Any:
    """TensorRT, or a skip that says so."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        pytest.skip(f"TensorRT level L5 NOT RUN: {error}")


@pytest.fixture(scope="session")
def evidence(tensorrt: Any, cuda: Any) -> Iterator[dict[str, Any]]:
    """A record that the tests fill; written when the session ends, also after a failure (`passed` tells)."""
    reading = NvmlSource().read()
    record: dict[str, Any] = {
        "level": "L5",
        "started_unix_s": time.time(),
        "gpu": cuda.cuda.get_device_name(0),
        "capability": ".".join(map(str, cuda.cuda.get_device_capability(0))),
        "driver": reading.driver_version,
        "versions": {"tensorrt": tensorrt.__version__, "torch": cuda.__version__, "cuda": cuda.version.cuda},
        "host": platform.platform(),
        "passed": {},
    }
    yield record
    folder = Path(os.environ.get("MANTA_GPU_EVIDENCE") or ".")
    (folder / EVIDENCE).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
