"""Every probe keeps the contract of `Probe`, and a container's limits win over the host's totals."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ResourceError
from cluster.probe import GpuReading, HostReading, Probe, host_facts, sum_facts
from cluster.probe.gpus import NvmlSource
from cluster.probe.hosts import HostProbe, cpu_cores, memory_available_bytes, memory_total_bytes
from tests.unit.probe_tests.fake_nvml import FakeNvml
from tests.unit.probe_tests.fake_probe import FakeProbe

GPU = GpuReading(uuid="GPU-1", name="H200", memory_total_bytes=141 << 30, compute_capability=(9, 0))


class ProbeConformance:
    """What any implementation of `Probe` must do. Subclass it and give `probe`."""

    @pytest.fixture
    def probe(self) -> Probe:
        raise NotImplementedError

    def test_a_reading_is_plain_data(self, probe: Probe) -> None:
        reading = probe.read()
        assert HostReading.model_validate_json(reading.model_dump_json()) == reading

    def test_what_is_null_has_a_reason(self, probe: Probe) -> None:
        reading = probe.read()
        missing = {name for name in HostReading.model_fields if getattr(reading, name) is None}
        assert missing <= set(reading.reasons)
        for gpu in reading.gpus or ():
            unread = {name for name in GpuReading.model_fields if getattr(gpu, name) is None} - {"parent_uuid"}
            assert not (unread - set(gpu.reasons)) or not gpu.reasons

    def test_nothing_is_zero_that_cannot_be_zero(self, probe: Probe) -> None:
        reading = probe.read()
        assert reading.cpu_cores >= 1
        for value in (reading.memory_total_bytes, reading.shared_memory_total_bytes):
            assert value is None or value > 0
        assert all(gpu.memory_total_bytes is None or gpu.memory_total_bytes > 0 for gpu in reading.gpus or ())

    def test_gpus_have_different_uuids(self, probe: Probe) -> None:
        uuids = [gpu.uuid for gpu in probe.read().gpus or ()]
        assert len(set(uuids)) == len(uuids)
        assert all(uuids)

    def test_a_host_without_a_gpu_says_so(self, probe: Probe) -> None:
        reading = probe.read()
        assert reading.gpus or reading.reasons["gpus"]


class TestHostProbe(ProbeConformance):
    @pytest.fixture
    def probe(self) -> Probe:
        return HostProbe()


class TestHostProbeWithGpus(ProbeConformance):
    @pytest.fixture
    def probe(self) -> Probe:
        return HostProbe(gpus=NvmlSource(load=lambda: FakeNvml(devices=3)))


class TestFakeProbe(ProbeConformance):
    @pytest.fixture
    def probe(self) -> Probe:
        return FakeProbe(memory_total_bytes=None)


class TestFakeProbeWithGpu(ProbeConformance):
    @pytest.fixture
    def probe(self) -> Probe:
        return FakeProbe(gpus=(GPU,))


def test_facts_of_several_hosts_are_summed_and_a_host_counts_once() -> None:
    other = GPU.model_copy(update={"uuid": "GPU-2"})
    first, second = FakeProbe("a", 8, gpus=(GPU,)).read(), FakeProbe("b", 4, 16 << 30, gpus=(other,)).read()
    facts = sum_facts([first, second, first])
    assert (facts.nodes, facts.cpu_cores, facts.memory_bytes) == (2, 12, 48 << 30)
    assert [gpu.uuid for gpu in facts.gpus] == ["GPU-1", "GPU-2"]


def test_memory_that_nobody_could_read_is_an_error_and_not_zero() -> None:
    with pytest.raises(ResourceError, match="no host's memory could be read"):
        host_facts(FakeProbe(memory_total_bytes=None))


def test_facts_of_this_host_are_plausible() -> None:
    facts = host_facts()
    assert facts.cpu_cores >= 1
    assert facts.memory_bytes > 64 << 20


@pytest.mark.parametrize(
    ("files", "cores", "limit"),
    [
        ({"cpu.max": "50000 100000", "memory.max": str(512 << 20), "memory.current": str(400 << 20)}, 1, 512 << 20),
        ({"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": str(1 << 30)}, 1, 1 << 30),
        ({"memory/memory.limit_in_bytes": str((1 << 63) - 4096)}, None, None),
    ],
)  # fmt: skip
def test_a_containers_limits_win(tmp_path: Path, files: dict[str, str], cores: int | None, limit: int | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    nowhere = tmp_path / "nowhere"
    assert cpu_cores(tmp_path) == (cores or cpu_cores(nowhere))
    assert memory_total_bytes(tmp_path) == (limit or memory_total_bytes(nowhere))
    if "memory.current" in files:
        assert memory_available_bytes(tmp_path) == 112 << 20
