"""A stream of infer requests over one call: each is answered as it would be alone, in the order in which they came.

Invariant: a request that fails is one answer with an error, and the stream goes on; at most `AHEAD` requests of one
stream are at work, and a client that sends faster waits (gRPC's flow control); a stream that ends early leaves nothing
in the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from cluster.errors import MantaError
from serve.proto import inference_pb2

AHEAD = 64  # one stream alone can fill the default batch
END = None
Infer = Callable[[Any], Awaitable[Any]]


async def stream_infer(requests: AsyncIterator[Any], infer: Infer) -> AsyncIterator[Any]:
    """ModelStreamInfer over a unary `infer`."""
    answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(AHEAD)
    reader = asyncio.create_task(_read(requests, infer, answers))
    waiting: asyncio.Task[Any] | None = None
    try:
        while (waiting := await answers.get()) is not END:
            yield await waiting
        await reader  # raises what reading raised
    finally:
        reader.cancel()
        left = [waiting] if waiting is not None else []
        while not answers.empty():
            task = answers.get_nowait()
            left += [task] if task is not None else []
        for task in left:
            task.cancel()
        await asyncio.gather(reader, *left, return_exceptions=True)


async def _read(requests: AsyncIterator[Any], infer: Infer, answers: asyncio.Queue[Any]) -> None:
    try:
        async for request in requests:
            task = asyncio.create_task(_answer(request, infer))
            try:
                await answers.put(task)
            except asyncio.CancelledError:
                task.cancel()
                raise
    except asyncio.CancelledError:
        raise
    except BaseException:
        await answers.put(END)
        raise
    await answers.put(END)


async def _answer(request: Any, infer: Infer) -> Any:
    try:
        return inference_pb2.ModelStreamInferResponse(infer_response=await infer(request))
    except MantaError as error:
        # the client finds its request by the identity; Triton sends it with errors too
        named = inference_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        return inference_pb2.ModelStreamInferResponse(error_message=error.message, infer_response=named)
