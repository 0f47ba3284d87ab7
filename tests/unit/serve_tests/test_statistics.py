"""A version's counters and its window of recent requests."""

from __future__ import annotations

import time

import pytest

from serve.protocol.statistics import ModelStatistics


def test_only_recent_requests_count_for_the_latency_target(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = ModelStatistics("m", "1")
    assert statistics.recent_latency_s(2.0) == 0.0
    now = time.monotonic()
    statistics._window.extend([(now - 60, 9_000_000_000, 1), (now, 100_000_000, 1)])
    assert statistics.recent_latency_s(2.0) == pytest.approx(0.1)
