"""Which GPU a replica may take: by measured memory, never a byte twice, and refused with numbers and names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cluster.bundle import open_bundle
from cluster.errors import MemoryShortError, RequestError
from cluster.probe.gpus import GpuSourceReading
from cluster.probe.probe import GpuReading
from cluster.runtime.node import resources_environment
from cluster.runtime.nodes.gpu_memory import node_resources
from cluster.spec.serve import ServeSpec
from serve.config import EndpointConfig, VersionConfig
from serve.deployments.placement import (
    GpuNode,
    actor_options,
    check_fits,
    footprint_bytes,
    gpu_share,
    replicas_that_fit,
)
from serve.footprint import main, measure_bundle
from serve.models.gpu_memory import CONTEXT_BYTES, GIB, GpuRoom, check_gpu_memory, find_gpu, read_rooms, visible_gpus
from tests.bundles import make_simulated_bundle
from tests.nvml.library import build, environment, write_gpus

MIB = 1 << 20


def room(name: str, total_gib: float, free_gib: float | None) -> GpuRoom:
    free = None if free_gib is None else int(free_gib * GIB)
    return GpuRoom(f"GPU-{name}", name, int(total_gib * GIB), free, "python (pid 7)")


def node(*rooms: GpuRoom, gpus: float | None = None, mib: float | None = 0) -> GpuNode:
    free = sum(each.free_bytes or 0 for each in rooms) / MIB if mib == 0 else mib
    return GpuNode("10.0.0.1", rooms, len(rooms) if gpus is None else gpus, free)


def test_replicas_are_packed_by_memory_onto_each_gpu() -> None:
    nodes = [node(room("a", 80, 79), room("b", 80, 79))]
    share = gpu_share(19 * GIB + CONTEXT_BYTES, nodes)
    assert share.num_gpus == pytest.approx(0.25, abs=0.001)
    assert share.memory_mib == 20 * 1024
    assert replicas_that_fit(share, nodes) == 6, "three on each GPU of 79 GiB free: by memory, not by the node's sum"


def test_the_share_is_of_the_smallest_gpu_and_a_model_larger_than_it_takes_one_whole() -> None:
    nodes = [node(room("small", 16, 15)), node(room("large", 80, 79))]
    share = gpu_share(20 * GIB, nodes)
    assert share.num_gpus == 1.0
    assert [replicas_that_fit(share, [each]) for each in nodes] == [0, 1]


def test_memory_that_nvml_does_not_see_free_is_not_promised_even_where_ray_has_reserved_nothing() -> None:
    share = gpu_share(10 * GIB, [node(room("a", 80, 79))])
    taken = node(room("a", 80, 4), mib=79 * 1024)
    with pytest.raises(MemoryShortError) as caught:
        check_fits(share, 1, [taken])
    for words in ("0 of 1 replicas", "4.00 of 80.00 GiB free", "79.00 not reserved", "python (pid 7)", "10.50 GiB"):
        assert words in str(caught.value)


def test_a_model_without_a_measured_footprint_gets_a_gpu_of_its_own() -> None:
    nodes = [node(room("a", 80, 79), gpus=0.5)]
    share = gpu_share(None, nodes)
    assert (share.num_gpus, share.memory_mib) == (1.0, 0)
    with pytest.raises(MemoryShortError, match="a GPU of its own"):
        check_fits(share, 1, nodes)


@pytest.mark.parametrize("nodes", [[], [node(room("a", 16, 15))]], ids=["no GPU", "no GPU is large enough"])
def test_what_no_gpu_can_hold_is_refused(nodes: list[GpuNode]) -> None:
    with pytest.raises(MemoryShortError):
        check_fits(gpu_share(20 * GIB, nodes), 1, nodes)


def test_a_node_without_the_resource_is_judged_by_the_gpus_share_alone() -> None:
    nodes = [node(room("a", 80, 79), mib=None)]
    share = gpu_share(19 * GIB + CONTEXT_BYTES, nodes)
    assert (share.memory_mib, replicas_that_fit(share, nodes)) == (0, 3)


def test_a_replica_reserves_for_every_version_that_it_loads(tmp_path: Path) -> None:
    paths = [make_simulated_bundle(tmp_path / str(n), footprint_bytes=n * GIB) for n in (1, 2)]
    versions = tuple(VersionConfig(version=str(n), bundle=str(path)) for n, path in enumerate(paths, 1))
    config = EndpointConfig(name="m", versions=versions, default_version="2")
    assert footprint_bytes(config) == 2 * GIB
    assert footprint_bytes(config.with_values({"versions": "all"})) == 3 * GIB + CONTEXT_BYTES


class Source:
    """GPUs as told."""

    def __init__(self, *gpus: dict[str, Any]) -> None:
        self._gpus = tuple(GpuReading(uuid=f"GPU-{index}", **gpu) for index, gpu in enumerate(gpus))

    def read(self) -> GpuSourceReading:
        return GpuSourceReading(gpus=self._gpus)


TWO = Source(*({"memory_total_bytes": 80 * GIB, "memory_free_bytes": free * GIB} for free in (1, 70)))


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-0", "GPU-1"]),
        ("1", ["GPU-1"]),
        ("1,0", ["GPU-1", "GPU-0"]),
        ("GPU-1", ["GPU-1"]),
        ("0,9,1", ["GPU-0"]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_are_counted_as_cuda_counts_them(visible: str | None, uuids: list[str]) -> None:
    assert [gpu.uuid for gpu in visible_gpus(TWO.read().gpus or (), visible) if gpu] == uuids


def test_a_replica_asks_after_the_gpu_that_ray_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = find_gpu("cuda:0", TWO)
    assert found is not None
    assert found.uuid == "GPU-1"
    check_gpu_memory("cuda:0", 60 * GIB, TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(MemoryShortError, match=r"1\.00 of 80\.00 GiB are free"):
        check_gpu_memory("cuda:0", 60 * GIB, TWO)


@pytest.mark.parametrize("free", [-1, 81 * GIB])
def test_a_lying_nvml_is_not_believed(free: int) -> None:
    liar = Source({"memory_total_bytes": 80 * GIB, "memory_free_bytes": free})
    check_gpu_memory("cuda:0", 60 * GIB, liar)


def test_a_nodes_resource_is_what_is_free_and_nothing_is_guessed() -> None:
    assert node_resources(TWO) == {"gpu_memory_mib": 71 * 1024.0}
    assert node_resources(Source({"memory_free_bytes": None})) == {}
    assert node_resources(Source()) == {}


def test_what_the_user_says_of_a_node_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.runtime.node.node_resources", lambda: {"gpu_memory_mib": 5.0})
    given = {"RAY_OVERRIDE_RESOURCES": '{"other": 1}'}
    assert resources_environment(given, ["ray"]) == {"RAY_OVERRIDE_RESOURCES": '{"other": 1, "gpu_memory_mib": 5.0}'}
    assert resources_environment({}, ["ray", "start", '--resources={"gpu_memory_mib": 1}']) == {}
    assert resources_environment({"RAY_OVERRIDE_RESOURCES": '{"gpu_memory_mib": 1}'}, ["ray"]) == {}


def test_the_real_binding_reads_a_library_and_names_who_holds_the_memory(tmp_path: Path) -> None:
    import json
    import subprocess
    import sys

    library = build(tmp_path)
    state = write_gpus(tmp_path / "gpus", ("GPU-a", 16384, 12000, [os.getpid()]), ("GPU-b", 40960, 40000, []))
    read = "from serve.models.gpu_memory import read_rooms"
    script = f"import json; {read}; print(json.dumps([vars(room) for room in read_rooms()]))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment(library, state)},
        capture_output=True,
        text=True,
    )
    first, second = json.loads(done.stdout)
    assert (first["uuid"], first["total_bytes"], first["free_bytes"]) == ("GPU-a", 16384 * MIB, 12000 * MIB)
    assert f"(pid {os.getpid()})" in first["holders"]
    assert second["holders"] == "no process that can be seen"
    assert read_rooms() == (), "this host has no GPU"


class Falling:
    """A GPU whose free memory is less at each reading."""

    def __init__(self, *free: int | None) -> None:
        self._free = list(free)

    def read(self) -> GpuSourceReading:
        return Source({"memory_total_bytes": 80 * GIB, "memory_free_bytes": self._free.pop(0)}).read()


@pytest.mark.parametrize(
    ("free", "told", "found"),
    [
        ((70 * GIB, 60 * GIB), 0, 10 * GIB - CONTEXT_BYTES),
        ((70 * GIB, 70 * GIB), 3 * GIB, 3 * GIB),
        ((None, None), GIB, GIB),
    ],
    ids=["NVML sees it", "the engine knows more", "NVML cannot read"],
)
def test_a_measured_footprint_is_written_and_nothing_else(
    tmp_path: Path, free: tuple[int | None, int | None], told: int, found: int
) -> None:
    bundle = make_simulated_bundle(tmp_path / "bundle", footprint_bytes=told)
    before = open_bundle(bundle).manifest
    assert measure_bundle(bundle, "cuda:0", 8, Falling(*free)) == {"fp32": found}
    after = open_bundle(bundle).manifest
    assert after.variant().footprint_bytes == found
    variants = tuple(v.model_copy(update={"footprint_bytes": told}) for v in after.variants)
    assert after.model_copy(update={"variants": variants}) == before


def test_a_footprint_that_nobody_can_tell_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    bundle = make_simulated_bundle(tmp_path / "bundle")
    before = (bundle / "manifest.json").read_bytes()
    assert main([str(bundle), "--device", "cpu"]) == 2
    with pytest.raises(RequestError, match="neither NVML nor the engine"):
        measure_bundle(bundle, "cuda:0", 8, Falling(None, None))
    assert (bundle / "manifest.json").read_bytes() == before


def test_what_an_endpoint_has_reserved_stays_when_its_footprint_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.deployments.placement.SETTLE_S", 0.0)
    bundle = make_simulated_bundle(tmp_path / "bundle", footprint_bytes=19 * GIB + CONTEXT_BYTES)
    version = VersionConfig(version="1", bundle=str(bundle))
    config = EndpointConfig(name="m", versions=(version,), default_version="1", spec=ServeSpec(device="cuda"))
    nodes = [node(room("a", 80, 79))]
    monkeypatch.setattr("serve.deployments.placement.gpu_nodes", lambda: nodes)
    first = actor_options(config, None, {})
    assert (first["num_gpus"], first["resources"]) == (0.25, {"gpu_memory_mib": 20 * 1024})
    nodes[:] = [node(room("a", 80, 1), room("small", 16, 0))]  # another node's GPU would change the share
    again = config.with_version(str(bundle))
    assert actor_options(again, config, first) == first, "its replicas stay where they are: nothing more is needed"
    more = again.with_values({"replicas.min": 2, "replicas.max": 2})
    with pytest.raises(MemoryShortError, match="0 of 1 replicas"):
        actor_options(more, config, first)
    larger = make_simulated_bundle(tmp_path / "larger", footprint_bytes=30 * GIB)
    with pytest.raises(MemoryShortError, match="0 of 1 replicas"):
        actor_options(config.with_version(str(larger)), config, first)


def test_a_cpu_endpoint_asks_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.deployments.placement.gpu_nodes", lambda: pytest.fail("nothing to ask"))
    version = VersionConfig(version="1", bundle="/nowhere")
    assert actor_options(EndpointConfig(name="m", versions=(version,), default_version="1"), None, {}) == {
        "num_cpus": 0.5
    }
