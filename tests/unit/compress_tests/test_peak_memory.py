"""Peak memory of a graph follows its weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.bundles import mlp_graph
from trainers.compress.peak_memory import STATUS, peak_memory_bytes


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
def test_a_graph_with_more_weights_has_the_larger_peak(tmp_path: Path) -> None:
    peaks = []
    for hidden in (64, 2048):  # 2,048² floats are 16 MiB
        onnx.save(mlp_graph(16, hidden, 4), tmp_path / f"{hidden}.onnx")
        peaks.append(peak_memory_bytes(tmp_path / f"{hidden}.onnx", rows=32))
    small, large = peaks
    assert small is not None
    assert large is not None
    assert large - small > 16 << 20
    assert peak_memory_bytes(tmp_path / "absent.onnx", rows=1) is None
