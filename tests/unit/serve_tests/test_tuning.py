"""Batch sizes from a latency curve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.spec.serve import BatchingSpec, ServeSpec
from serve.batching.tuning import Point, choose, measure
from serve.config import EndpointConfig, VersionConfig
from serve.models.repository import ModelRepository
from serve.protocol.limits import Limits


@pytest.mark.parametrize(
    ("seconds_of", "rows"),
    [
        (lambda rows: 0.001, 256),
        (lambda rows: 0.001 * rows, 1),
        (lambda rows: 0.001 + 0.0001 * rows, 128),
        (lambda rows: 0.01 + 0.0004 * rows, 64),
        (lambda rows: 0.001 * max(1, rows / 8), 8),
    ],
    ids=["rows are free", "rows cost all", "overhead", "the budget ends it", "a knee at eight"],
)
def test_rows_grow_while_they_pay(seconds_of: Callable[[int], float], rows: int) -> None:
    points = [Point(2**power, seconds_of(2**power)) for power in range(9)]
    assert choose(points)[0] == rows


def test_the_wait_is_half_a_rows_time_and_bounded() -> None:
    assert choose([Point(1, 0.002)])[1] == pytest.approx(0.001)
    assert choose([Point(1, 10.0)])[1] == 0.005


def test_the_curve_stops_where_a_call_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("serve.batching.tuning.time.perf_counter", lambda: clock[0])
    asked: list[int] = []

    def call(rows: int) -> None:
        asked.append(rows)
        clock[0] += 0.02 * rows

    points = measure(call)
    assert [point.rows for point in points] == [1, 2, 4, 8]
    assert points[-1].seconds == pytest.approx(0.16)


def test_auto_is_decided_when_a_version_is_loaded(small_bundle: Path) -> None:
    version = VersionConfig(version="1", bundle=str(small_bundle))
    spec = ServeSpec(batching=BatchingSpec(max_rows="auto", max_wait_ms="auto"))
    config = EndpointConfig(name="m", versions=(version,), default_version="1", spec=spec)

    async def load() -> tuple[int, float]:
        repository = ModelRepository("m", Limits())
        await repository.apply(config)
        policy = repository.find("m").batcher.policy
        await repository.close()
        return policy.max_rows, policy.max_wait_s

    rows, wait_s = asyncio.run(load())
    assert rows & (rows - 1) == 0
    assert 1 <= rows <= 256
    assert 0 < wait_s <= 0.005
