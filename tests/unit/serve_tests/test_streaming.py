"""A stream of requests: answered in order, bounded, and nothing stays behind when it ends early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve.doors.streaming import AHEAD, stream_infer
from serve.proto import inference_pb2
from serve.protocol.errors import bad_request


async def requests(count: int, seen: list[int] | None = None) -> AsyncIterator[Any]:
    for index in range(count):
        if seen is not None:
            seen.append(index)
        yield inference_pb2.ModelInferRequest(model_name="m", id=str(index))


def test_answers_keep_the_order_of_requests_whatever_finishes_first() -> None:
    async def infer(request: Any) -> Any:
        await asyncio.sleep(0.02 if int(request.id) % 2 else 0)
        if request.id == "3":
            raise bad_request("three")
        return inference_pb2.ModelInferResponse(id=request.id)

    async def test() -> None:
        answers = [answer async for answer in stream_infer(requests(20), infer)]
        assert [answer.infer_response.id for answer in answers] == [str(index) for index in range(20)]
        assert [index for index, answer in enumerate(answers) if answer.error_message] == [3]

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_client_that_sends_faster_than_it_is_answered_waits_and_leaves_nothing_when_it_goes() -> None:
    running: set[str] = set()

    async def infer(request: Any) -> Any:
        running.add(request.id)
        try:
            await asyncio.Event().wait()
        finally:
            running.discard(request.id)

    async def test() -> None:
        seen: list[int] = []
        before = asyncio.all_tasks()
        stream = stream_infer(requests(10 * AHEAD, seen), infer)
        first = asyncio.ensure_future(anext(stream))
        while len(running) < AHEAD:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(seen) <= AHEAD + 2
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await stream.aclose()
        assert running == set()
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(test(), 20))


def test_what_reading_raises_ends_the_stream() -> None:
    async def broken() -> AsyncIterator[Any]:
        yield inference_pb2.ModelInferRequest(id="0")
        raise ConnectionResetError

    async def infer(request: Any) -> Any:
        return inference_pb2.ModelInferResponse(id=request.id)

    async def test() -> None:
        with pytest.raises(ConnectionResetError):
            _ = [answer async for answer in stream_infer(broken(), infer)]

    asyncio.run(asyncio.wait_for(test(), 20))
