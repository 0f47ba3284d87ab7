"""What our probe reads by NVML against what `nvidia-smi` prints.

Two tools cannot read at the same instant: NVML is read before and after, and a number may lie between the two, give
or take what is printed of it.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess

from benchmarks.gpu.findings import Context, Findings, Skip
from cluster.probe.gpus import GpuSourceReading, NvmlSource
from cluster.probe.probe import GpuReading

MIB = 1 << 20
QUERY = {  # field of nvidia-smi -> what may lie between two readings, in its unit
    "memory.total": 1.0,
    "memory.used": 64.0,
    "memory.free": 64.0,
    "temperature.gpu": 2.0,
    "power.draw": 25.0,
    "utilization.gpu": 100.0,  # of the last moment only: compared for being there
}
NAMES = ("uuid", "name", "driver_version", "compute_cap")


def run(context: Context, findings: Findings) -> None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise Skip("nvidia-smi is not on the path")
    before = NvmlSource().read()
    fields = ",".join((*NAMES, *QUERY))
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    compare(before, NvmlSource().read(), printed, findings)


def compare(before: GpuSourceReading, after: GpuSourceReading, printed: str, findings: Findings) -> None:
    """One finding for each GPU that nvidia-smi prints."""
    readings = ({gpu.uuid: gpu for gpu in reading.gpus or ()} for reading in (before, after))
    first, second = readings
    findings.put("reasons", ok=not before.reasons, **before.reasons)
    for row in csv.reader(io.StringIO(printed), skipinitialspace=True):
        told = dict(zip((*NAMES, *QUERY), row, strict=True))
        one, two = first.get(told["uuid"]), second.get(told["uuid"])
        if one is None or two is None:
            slices = [gpu.uuid for gpu in first.values() if gpu.parent_uuid == told["uuid"]]
            findings.put(told["uuid"], ok=bool(slices), mig_slices=len(slices), nvidia_smi=told["name"])
            continue
        findings.put(told["uuid"], **_one(one, two, told, before.driver_version))


def _one(one: GpuReading, two: GpuReading, told: dict[str, str], driver: str | None) -> dict[str, object]:
    wrong: list[str] = []
    capability = ".".join(map(str, one.compute_capability or ()))
    for name, ours in (("name", one.name), ("driver_version", driver), ("compute_cap", capability)):
        if ours != told[name]:
            wrong.append(f"{name}: {ours!r} by NVML, {told[name]!r} printed")
    numbers = {}
    for name, slack in QUERY.items():
        pair = [number for gpu in (one, two) if (number := _ours(gpu, name)) is not None]
        numbers[name] = pair[:1]
        theirs = _number(told[name])
        if theirs is None or not pair:
            if (theirs is None) != (not pair):
                wrong.append(f"{name}: {pair or None} by NVML, {told[name]!r} printed")
        elif not min(pair) - slack <= theirs <= max(pair) + slack:
            wrong.append(f"{name}: {pair} by NVML, {theirs:g} printed")
    return {"ok": not wrong, "wrong": wrong, "ours": numbers, "nvidia_smi": told, "reasons": one.reasons}


def _ours(gpu: GpuReading, name: str) -> float | None:
    in_mib = {"memory.total": gpu.memory_total_bytes, "memory.used": gpu.memory_used_bytes}
    in_mib["memory.free"] = gpu.memory_free_bytes
    if name in in_mib:
        number = in_mib[name]
        return None if number is None else number / MIB
    plain = {
        "temperature.gpu": gpu.temperature_celsius,
        "power.draw": gpu.power_watts,
        "utilization.gpu": gpu.utilization_percent,
    }
    return plain[name]


def _number(text: str) -> float | None:
    """`[N/A]` and `[Not Supported]` are no numbers."""
    try:
        return float(text)
    except ValueError:
        return None
