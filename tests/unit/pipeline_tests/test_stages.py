"""The table of stages: which of them need Ray for which spec."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.pipeline.stages import STAGES
from cluster.spec.load import validate_spec
from cluster.spec.resolve import GpuFacts, HostFacts

CPUS = HostFacts(cpu_cores=2, memory_bytes=1 << 30)
GPU = HostFacts(cpu_cores=2, memory_bytes=1 << 30, gpus=(GpuFacts(uuid="u", name="g"),))
ONE = {"workers": 1}
SEVERAL = ["int8_dynamic", "int8_static"]


@pytest.mark.parametrize(
    ("host", "sections", "needing"),
    [
        (CPUS, {"train": ONE}, ["search", "deploy"]),
        (CPUS, {"train": {"workers": "auto"}}, ["search", "deploy"]),
        (CPUS, {"train": {"workers": 2}}, ["search", "train", "deploy"]),
        (CPUS, {"train": {"workers": {"min": 1, "max": 2}}}, ["search", "train", "deploy"]),
        (GPU, {"train": ONE}, ["search", "train", "deploy"]),
        (CPUS, {"train": ONE, "compress": {"recipes": SEVERAL}}, ["search", "compress", "deploy"]),
        (CPUS, {"train": ONE, "compress": {"recipes": SEVERAL, "concurrency": 1}}, ["search", "deploy"]),
        (CPUS, {"train": ONE, "compress": {"recipes": ["prune"]}}, ["search", "deploy"]),
        (
            CPUS,
            {"train": {"workers": 2}, "compress": {"recipes": ["prune"]}},
            ["search", "train", "compress", "deploy"],
        ),
        (CPUS, {"train": ONE, "compress": None}, ["search", "deploy"]),
    ],
)
def test_a_stage_needs_ray_for_what_runs_beside_or_after_the_driver(
    host: HostFacts, sections: dict[str, Any], needing: list[str]
) -> None:
    data = {"source": {"kind": "sklearn", "dataset": "digits"}}
    spec = validate_spec({"version": 1, "data": data, **sections})
    assert [stage.name for stage in STAGES if stage.needs_ray(spec, host)] == needing
