"""What this CPU can do with 8-bit integers, read from /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Instruction set flags of the first core; empty where they cannot be read."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_vnni(cpuinfo: Path = CPUINFO) -> bool:
    """Whether 8-bit products accumulate without saturation (x86 VNNI)."""
    return bool(VNNI_FLAGS & cpu_flags(cpuinfo))
