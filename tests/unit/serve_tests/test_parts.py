"""A request of more rows than an engine call takes is cut; others are answered between its parts."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from cluster.errors import InferenceError, OverloadedError, ProtocolError
from cluster.spec.serve import BatchingSpec
from serve.batching.batcher import BatchPolicy
from serve.batching.parts import submit_in_parts
from serve.doors import rest
from serve.doors import rpc as rpc_door
from serve.doors.rpc import Rpc
from serve.models.model import ServedModel
from serve.proto import inference_pb2
from serve.protocol.limits import Limits
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import INFER, client
from tests.unit.serve_tests.test_batching import Bench, run, sums

POLICY = BatchPolicy(max_rows=8, max_wait_s=0.0)


def ask(bench: Bench, rows: int, **options: int) -> asyncio.Task[Any]:
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    submitted = submit_in_parts(bench.batcher, bench.statistics, {"x": x}, **options)
    return asyncio.get_running_loop().create_task(submitted)


def test_calls_have_at_most_max_rows_and_the_answer_has_every_row_in_order() -> None:
    async def test(bench: Bench) -> None:
        answer = await ask(bench, 20)
        assert answer["y"][:, 0].tolist() == [4.0 * row + 1.0 for row in range(20)]
        assert bench.engine.calls == [8, 8, 4]
        assert (bench.statistics.outcomes, bench.statistics.inference_count) == ({"success": 1}, 20)
        assert bench.statistics.phases["success"].count == 1
        assert (bench.batcher.queued_rows, bench.batcher.queued_bytes) == (0, 0)

    run(test, policy=POLICY)


def test_others_are_answered_between_the_parts() -> None:
    async def test(bench: Bench) -> None:
        bench.engine.gate.clear()
        large = ask(bench, 80)
        while not bench.engine.calls:
            await asyncio.sleep(0)
        others = [bench.ask(1.0) for _ in range(8)]
        await asyncio.sleep(0)
        assert bench.batcher.queued_rows == 80 - 8 + 8, "the whole counts from its start"
        bench.engine.gate.set()
        assert sums(await asyncio.gather(*others)) == [2.0] * 8
        assert not large.done()
        assert len(bench.engine.calls) < 6
        assert len((await large)["y"]) == 80

    run(test, policy=POLICY)


def test_a_part_that_fails_ends_the_request_and_is_counted_once() -> None:
    def fault(inputs: Mapping[str, np.ndarray]) -> None:
        if (inputs["x"] == 20.0).any():
            raise ValueError("unlucky")

    async def test(bench: Bench) -> None:
        with pytest.raises(InferenceError, match="unlucky"):
            await ask(bench, 800)
        assert len(bench.engine.calls) < 10
        assert bench.statistics.outcomes == {"failed": 1}
        assert (bench.batcher.queued_rows, bench.batcher.queued_bytes) == (0, 0)

    run(test, policy=POLICY, fault=fault)


@pytest.mark.parametrize("how", ["canceled", "deadline"])
def test_one_that_is_left_or_too_late_leaves_the_queue_as_a_whole(how: str) -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        large = ask(bench, 80, timeout_us=2000 if how == "deadline" else 0)
        await asyncio.sleep(0)
        if how == "canceled":
            large.cancel()
        with pytest.raises(OverloadedError if how == "deadline" else asyncio.CancelledError):
            await large
        assert (bench.batcher.queued_rows, bench.batcher.queued_bytes) == (0, 0)
        assert bench.statistics.outcomes == {how: 1}
        bench.engine.gate.set()
        await first

    run(test, policy=POLICY)


def test_a_draining_batcher_answers_the_parts_that_have_not_entered_yet() -> None:
    async def test(bench: Bench) -> None:
        bench.engine.gate.clear()
        large = ask(bench, 80)
        while not bench.engine.calls:
            await asyncio.sleep(0)
        drained = asyncio.get_running_loop().create_task(bench.batcher.drain())
        bench.engine.gate.set()
        assert len((await large)["y"]) == 80
        await drained

    run(test, policy=POLICY)


def test_the_queues_bound_holds_for_it() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(OverloadedError, match="at most 64 may"):
            await ask(bench, 65)
        assert len((await ask(bench, 64))["y"]) == 64

    run(test, policy=POLICY, limits=Limits(queue_rows=64))


def infer_body(rows: int, *, width: int = 3) -> bytes:
    data = np.ones(rows * width).tolist()
    return json.dumps({"inputs": [{"name": "x", "shape": [rows, width], "datatype": "FP32", "data": data}]}).encode()


def message(rows: int) -> Any:
    found = inference_pb2.ModelInferRequest(model_name="m")
    tensor = found.inputs.add(name="x", datatype="FP32", shape=[rows, 3])
    tensor.contents.fp32_contents.extend([1.0] * 3 * rows)
    return found


def test_through_every_door_a_request_past_the_queues_bound_is_413_and_one_within_it_is_cut(
    in_place: Callable[..., Any],
) -> None:
    async def test(place: Place) -> None:
        rpc = Rpc(place.dataplane, place.controlplane)
        async with client(place) as http:
            for path, bodies in (
                (INFER, [infer_body(101), infer_body(100)]),
                ("/predict", [json.dumps({"rows": [[1, 2, 3]] * rows}).encode() for rows in (101, 100)]),
            ):
                refused, answer = [await http.post(path, content=body) for body in bodies]
                assert (refused.status_code, answer.status_code) == (413, 200)
                assert "101 rows" in refused.json()["error"]
                assert "at most 100 (serve.queue.max_rows)" in refused.json()["error"]
        with pytest.raises(ProtocolError, match="101 rows"):
            await rpc.ModelInfer(message(101))
        assert list((await rpc.ModelInfer(message(100))).outputs[0].shape) == [100, 2]
        assert max(place.engine.calls) == 8
        assert sum(place.engine.calls) == 300
        assert place.model.statistics.outcomes == {"bad_request": 3, "success": 3}

    in_place(test, limits=Limits(queue_rows=100), pages=True)


def test_a_large_body_is_decoded_off_the_event_loop_and_a_small_one_on_it(
    in_place: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, list[bool]] = {"rest": [], "rpc": [], "check": []}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            threads[name].append(threading.current_thread() is threading.main_thread())
            return function(*arguments)

        return call

    monkeypatch.setattr("serve.doors.rest.decode", watched("rest", rest.decode))
    monkeypatch.setattr("serve.doors.rpc.decode_message", watched("rpc", rpc_door.decode_message))
    monkeypatch.setattr(ServedModel, "check", watched("check", ServedModel.check))

    async def test(place: Place) -> None:
        rpc = Rpc(place.dataplane, place.controlplane)
        async with client(place) as http:
            for rows in (1, 60_000):
                assert (await http.post(INFER, content=infer_body(rows))).status_code == 200
                await rpc.ModelInfer(message(rows))
            packed = gzip.compress(infer_body(400_000))
            assert (await http.post(INFER, content=packed, headers={"content-encoding": "gzip"})).status_code == 200

    in_place(test, limits=Limits(queue_rows=1_000_000), batching=BatchingSpec(max_rows=100_000, max_wait_ms=0.0))
    assert threads == {"rest": [True, False, False], "rpc": [True, False], "check": [True] * 4 + [False]}
