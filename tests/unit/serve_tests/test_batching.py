"""The batcher: requests are joined, each answers for itself, and nothing that was accepted is lost.

Time is not slept away: the fake engine's gate holds a call until the test opens it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from cluster.bundle import TensorSignature, TensorSpec
from cluster.errors import InferenceError, OverloadedError
from serve.batching.batcher import Batcher, BatchPolicy
from serve.batching.joining import stack
from serve.protocol.limits import Limits
from serve.protocol.statistics import ModelStatistics
from tests.engines import FakeEngine, Fault

SIGNATURE = TensorSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
)


class Bench:
    """A batcher over a fake engine whose gate is closed, so that requests gather."""

    def __init__(self, policy: BatchPolicy, limits: Limits, fault: Fault | None) -> None:
        self.engine = FakeEngine(SIGNATURE, fault=fault)
        self.statistics = ModelStatistics("m", "1")
        self.batcher = Batcher(self.engine.run, SIGNATURE, policy, limits, self.statistics)

    def ask(self, value: float, *, rows: int = 1, width: int = 2, **options: int) -> asyncio.Task[Any]:
        x = np.full((rows, width), value, np.float32)
        return asyncio.get_running_loop().create_task(self.batcher.submit({"x": x}, **options))

    async def occupy(self) -> asyncio.Task[Any]:
        """Start a call that waits at the gate; what is asked now must gather."""
        self.engine.gate.clear()
        task = self.ask(0.0, width=1)
        while not self.engine.calls:
            await asyncio.sleep(0)
        return task


def run(
    test: Callable[[Bench], Any], *, policy: BatchPolicy | None = None, limits: Limits | None = None,
    fault: Fault | None = None,
) -> Any:  # fmt: skip
    async def whole() -> Any:
        bench = Bench(policy or BatchPolicy(max_rows=8, max_wait_s=0.0), limits or Limits(), fault)
        try:
            return await asyncio.wait_for(test(bench), 20)
        finally:
            bench.engine.gate.set()
            await bench.batcher.drain()
            bench.batcher.close()

    return asyncio.run(whole())


def sums(answers: list[Any]) -> list[float]:
    return [float(answer["y"][0, 0]) for answer in answers]


def test_requests_of_rows_that_influence_one_another_are_never_joined_and_never_wait_for_company() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        tasks = [bench.ask(value, rows=2) for value in (1.0, 2.0, 3.0)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        assert sums(await asyncio.gather(first, *tasks)) == [0.0, 2.0, 4.0, 6.0]
        assert bench.engine.calls == [1, 2, 2, 2]

    run(test, policy=BatchPolicy(max_rows=8, max_wait_s=60.0, join=False))


def test_requests_that_wait_become_one_call_and_each_gets_its_own_rows() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        tasks = [bench.ask(value, rows=2) for value in (1.0, 2.0, 3.0)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        answers = await asyncio.gather(*tasks)
        await first
        assert bench.engine.calls == [1, 6]
        assert [answer["y"].tolist() for answer in answers] == [[[2.0]] * 2, [[4.0]] * 2, [[6.0]] * 2]

    run(test)


def test_a_batch_never_has_more_than_max_rows_or_max_bytes() -> None:
    async def test(bench: Bench) -> None:
        await bench.occupy()
        tasks = [bench.ask(1.0, rows=3) for _ in range(4)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        await asyncio.gather(*tasks)
        assert bench.engine.calls[1:] == [6, 6]

    run(test)
    run(test, policy=BatchPolicy(max_rows=100, max_wait_s=0.0, max_bytes=6 * 2 * 4))


def test_only_requests_of_one_shape_are_joined() -> None:
    async def test(bench: Bench) -> None:
        await bench.occupy()
        tasks = [bench.ask(1.0, width=width) for width in (2, 3, 2, 3)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        assert sums(await asyncio.gather(*tasks)) == [2.0, 3.0, 2.0, 3.0]
        assert bench.engine.calls[1:] == [2, 2]

    run(test)


def test_one_bad_item_fails_alone() -> None:
    def fault(inputs: Mapping[str, np.ndarray]) -> None:
        if (inputs["x"] == 13).any():
            raise ValueError("unlucky")

    async def test(bench: Bench) -> None:
        await bench.occupy()
        tasks = [bench.ask(value) for value in (1.0, 13.0, 3.0)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sums([answers[0], answers[2]]) == [2.0, 6.0]
        assert isinstance(answers[1], InferenceError)
        assert "unlucky" in str(answers[1])
        assert bench.statistics.outcomes == {"success": 3, "failed": 1}

    run(test, fault=fault)


@pytest.mark.parametrize(
    "answer",
    [
        {"y": np.zeros((1, 1), np.float32)},
        {"y": np.zeros((5, 1), np.float32)},
        {"y": np.float32(1)},
        {"z": np.zeros((3, 1), np.float32)},
    ],
    ids=["too few rows", "too many rows", "a scalar", "another name"],
)
def test_an_answer_that_does_not_fit_is_never_given_to_a_client(answer: dict[str, np.ndarray]) -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(InferenceError):
            await bench.ask(1.0, rows=3)

    run(test, fault=lambda _: dict(answer))


def test_a_row_that_is_not_finite_fails_alone() -> None:
    def fault(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = inputs["x"]
        return {"y": np.where(x[:, :1] == 13, np.nan, x[:, :1])}

    async def test(bench: Bench) -> None:
        await bench.occupy()
        tasks = [bench.ask(value) for value in (1.0, 13.0, 3.0)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sums([answers[0], answers[2]]) == [1.0, 3.0]
        assert "NaN" in str(answers[1])

    run(test, fault=fault)


def test_the_most_urgent_goes_first_and_equals_go_by_age() -> None:
    order: list[float] = []

    def fault(inputs: Mapping[str, np.ndarray]) -> None:
        order.append(float(inputs["x"][0, 0]))

    async def test(bench: Bench) -> None:
        await bench.occupy()
        tasks = [bench.ask(v, rows=8, priority=p) for v, p in ((1.0, 0), (2.0, 7), (3.0, 1), (4.0, 0))]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        await asyncio.gather(*tasks)

    run(test, fault=fault)
    assert order == [0.0, 3.0, 1.0, 4.0, 2.0]


def test_a_deadline_that_passes_in_the_queue_is_told_and_costs_no_call() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        late, patient = bench.ask(1.0, timeout_us=1), bench.ask(2.0)
        with pytest.raises(OverloadedError, match="timeout expired"):
            await late
        bench.engine.gate.set()
        await asyncio.gather(first, patient)
        assert bench.engine.calls == [1, 1]
        assert bench.statistics.outcomes["deadline"] == 1

    run(test)


def test_a_full_queue_refuses_at_once_and_goes_on_for_the_others() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        waiting = [bench.ask(1.0, rows=2) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="maximum queue size"):
            await bench.ask(1.0)
        bench.engine.gate.set()
        assert sums(await asyncio.gather(*waiting)) == [2.0, 2.0]
        await first
        assert sums([await bench.ask(5.0)]) == [10.0]

    run(test, limits=Limits(queue_rows=4))
    run(test, limits=Limits(queue_bytes=2 * 2 * 2 * 4))


def test_a_request_that_would_wait_too_long_is_refused_before_it_waits() -> None:
    """The bound is time, from what a row took: 0.2 s a row and at most 0.5 s refuse the fourth."""

    async def test(bench: Bench) -> None:
        bench.batcher._recent_s, bench.batcher._recent_rows = 0.2, 1.0
        first = await bench.occupy()
        waiting = [bench.ask(1.0) for _ in range(3)]
        await asyncio.sleep(0)
        assert bench.batcher.expected_wait_s == pytest.approx(0.6)
        with pytest.raises(OverloadedError, match=r"3 rows wait and need 0\.6 s, at most 0\.5 s"):
            await bench.ask(1.0)
        bench.engine.gate.set()
        assert sums(await asyncio.gather(*waiting)) == [2.0] * 3
        await first
        assert bench.statistics.outcomes["queue_full"] == 1

    run(test, limits=Limits(queue_wait_s=0.5))


def test_the_time_of_a_row_is_measured_and_one_slow_call_is_forgotten() -> None:
    async def test(bench: Bench) -> None:
        bench.batcher._recent_s, bench.batcher._recent_rows = 30.0, 1.0
        for _ in range(60):
            await bench.ask(1.0, rows=8)
        assert bench.batcher._recent_s / bench.batcher._recent_rows < 0.01

    run(test)


def test_the_engines_thread_takes_the_next_batch_without_the_event_loop() -> None:
    """While the loop is held, the engine works off what waits; with a round trip over the loop it would stand still."""

    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        waiting = [bench.ask(1.0, rows=8) for _ in range(3)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        deadline = time.monotonic() + 10
        while len(bench.engine.calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)  # holds the event loop on purpose
        assert bench.engine.calls == [1, 8, 8, 8]
        await asyncio.gather(first, *waiting)

    run(test)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.bool_, np.float16, object])
def test_joined_rows_are_the_rows(dtype: type) -> None:
    parts = [np.arange(6 * rows).reshape(rows, 2, 3).astype(dtype) for rows in (1, 3, 2)]
    strided = np.arange(24).reshape(2, 3, 4).astype(dtype).transpose(0, 2, 1)[:, :2]
    for arrays in (parts, [*parts, strided]):
        joined = stack(arrays)
        assert joined.dtype == dtype
        np.testing.assert_array_equal(joined, np.concatenate(arrays))


def test_clients_that_leave_cost_no_call_and_others_are_answered() -> None:
    """The pattern of ray#41057: most clients give up; recovery must be full."""

    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        tasks = [bench.ask(float(index)) for index in range(100)]
        await asyncio.sleep(0)
        for task in tasks[:80]:
            task.cancel()
        await asyncio.sleep(0)
        assert bench.batcher.queued_rows == 20
        bench.engine.gate.set()
        answers = await asyncio.gather(*tasks[80:])
        await first
        assert sums(answers) == [2.0 * index for index in range(80, 100)]
        assert sum(bench.engine.calls) == 21
        assert (bench.batcher.queued_rows, bench.batcher.queued_bytes) == (0, 0)

    run(test)


def test_a_client_that_leaves_during_the_call_harms_nobody() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        first.cancel()
        after = bench.ask(4.0)
        await asyncio.sleep(0)
        bench.engine.gate.set()
        assert sums([await after]) == [8.0]

    run(test)


def test_preferred_sizes_cut_a_batch() -> None:
    async def test(bench: Bench) -> None:
        await bench.occupy()
        tasks = [bench.ask(1.0) for _ in range(7)]
        await asyncio.sleep(0)
        bench.engine.gate.set()
        await asyncio.gather(*tasks)
        assert bench.engine.calls[1:] == [4, 2, 1]

    run(test, policy=BatchPolicy(max_rows=8, max_wait_s=0.0, preferred_rows=(1, 2, 4)))


def test_a_request_waits_for_company_no_longer_than_max_wait() -> None:
    async def test(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        tasks = [bench.ask(1.0), bench.ask(2.0)]
        await asyncio.gather(*tasks)
        assert bench.engine.calls == [2]
        assert loop.time() - started >= 0.02

    run(test, policy=BatchPolicy(max_rows=8, max_wait_s=0.02))


def test_a_full_batch_does_not_wait() -> None:
    async def test(bench: Bench) -> None:
        await asyncio.gather(*(bench.ask(1.0) for _ in range(8)))
        assert bench.engine.calls == [8]

    run(test, policy=BatchPolicy(max_rows=8, max_wait_s=60.0))


def test_draining_answers_what_was_accepted_and_takes_no_more() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        waiting = bench.ask(1.0)
        await asyncio.sleep(0)
        drained = asyncio.get_running_loop().create_task(bench.batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="unloaded"):
            await bench.ask(2.0)
        assert not drained.done()
        bench.engine.gate.set()
        await drained
        assert sums([await waiting]) == [2.0]
        assert first.done()

    run(test)


def test_draining_does_not_wait_for_company() -> None:
    async def test(bench: Bench) -> None:
        waiting = bench.ask(1.0)
        await asyncio.sleep(0)
        await bench.batcher.drain()
        assert sums([await waiting]) == [2.0]

    run(test, policy=BatchPolicy(max_rows=8, max_wait_s=60.0))


def test_the_loop_answers_while_the_engine_is_wedged() -> None:
    async def test(bench: Bench) -> None:
        await bench.occupy()
        beats = 0
        for _ in range(100):
            await asyncio.sleep(0)
            beats += 1
        assert beats == 100
        assert bench.batcher.running == 1

    run(test)
