"""GPU gauges and load checks of a server process that loads a `libnvidia-ml.so.1`: true, failing and lying ones.

The library is tests/nvml/fake_nvml.c, loaded by nvidia-ml-py as NVIDIA's is. Not covered: a real GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.bundles import make_simulated_bundle
from tests.contract.protocol_tests.conftest import ready_line
from tests.integration.serve_tests.witness import witnessed
from tests.nvml.library import build, environment, write_gpus

GIB = 1 << 30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    build(folder)
    write_gpus(folder / "gpus", ("GPU-a", 16384, 12000, [os.getpid()]), ("GPU-b", 40960, 40000, []))
    return folder


def command(bundle: Path) -> list[str]:
    return [sys.executable, "-m", "serve", str(bundle), "--port", "0", "--device", "cuda:0"]


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    bundle = make_simulated_bundle(place / "bundle", footprint_bytes=10 * GIB)
    variables = {**os.environ, **environment(place, place / "gpus")}
    process = subprocess.Popen(command(bundle), env=variables, stderr=subprocess.PIPE, text=True)
    try:
        yield f"http://{ready_line(process, 'http://')}"
    finally:
        process.terminate()
        process.communicate(timeout=30)


def gauges(url: str) -> dict[tuple[str, str], float]:
    text = httpx.get(f"{url}/metrics", timeout=30, trust_env=False).text
    return {
        (sample.name.removeprefix("manta_serve_gpu_"), sample.labels["gpu"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("manta_serve_gpu_")
    }


def test_every_gauge_is_what_the_library_says(url: str) -> None:
    found = gauges(url)
    for name, value in (
        ("power_watts", 71.5),
        ("temperature_celsius", 41),
        ("ecc_uncorrected", 2),
        ("utilization_percent", 37),
        ("memory_total_bytes", 16 * GIB),
        ("memory_used_bytes", 4384 << 20),
    ):
        assert found[name, "GPU-a"] == value, name
    assert found["memory_total_bytes", "GPU-b"] == 40 * GIB
    (usage,) = httpx.get(f"{url}/v2/models/stats", trust_env=False).json()["model_stats"][0]["memory_usage"]
    assert usage == {"type": "GPU", "id": 0, "byte_size": 10 * GIB}


def test_a_driver_that_fails_later_takes_the_gauges_away_and_nothing_else(url: str, place: Path) -> None:
    state = place / "gpus"
    before = state.read_text()
    with witnessed(url, "played"):
        state.write_text("fail\n")
        assert gauges(url) == {}
        state.write_text(before)
        assert gauges(url)["temperature_celsius", "GPU-a"] == 41


@pytest.mark.parametrize(
    ("gpus", "code"),
    [
        ("GPU-a 16384 9000 1\n", 3),
        ("GPU-a 16384 99999 -\n", 0),
        ("fail\n", 0),
    ],
    ids=["too little is free", "more than there is", "fails"],
)
def test_a_load_is_refused_by_a_credible_library_only(place: Path, tmp_path: Path, gpus: str, code: int) -> None:
    (tmp_path / "gpus").write_text(gpus)
    bundle = make_simulated_bundle(tmp_path / "bundle", footprint_bytes=10 * GIB)
    variables = {**os.environ, **environment(place, tmp_path / "gpus")}
    process = subprocess.Popen(command(bundle), env=variables, stderr=subprocess.PIPE, text=True)
    if code:
        _, err = process.communicate(timeout=60)
        assert process.returncode == code
        for words in ("8.79 of 16.00 GiB are free", "(pid 1)", "needs 10.00 GiB", "Unload another model"):
            assert words in err
        return
    try:
        assert ready_line(process, "http://")
    finally:
        process.terminate()
        process.communicate(timeout=30)
