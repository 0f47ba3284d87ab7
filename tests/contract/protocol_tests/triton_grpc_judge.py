"""Run by the judge's own Python: asks a server through `tritonclient.grpc` and prints what it saw as JSON.

Usage: python triton_grpc_judge.py HOST:PORT MODEL ADMIN_TOKEN [APPLICATION].
APPLICATION names the endpoint in the metadata, which Ray Serve needs when it has several.
Imports nothing of this project.
"""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "FP64": np.float64, "BYTES": np.object_,
}  # fmt: skip


def value(datatype: str, rows: int) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[f"row {i}".encode(), "ü".encode()] for i in range(rows)], dtype=np.object_)
    return np.array([[0, 1]] * rows, dtype=TYPES[datatype])


def inputs(rows: int = 3) -> list[triton.InferInput]:
    found = []
    for datatype in TYPES:
        tensor = triton.InferInput(f"in_{datatype.lower()}", [rows, 2], datatype)
        tensor.set_data_from_numpy(value(datatype, rows))
        found.append(tensor)
    return found


class Named:
    """A client that sends the application's name with every call."""

    def __init__(self, client: triton.InferenceServerClient, application: str, token: str = "") -> None:
        self._client = client
        self._headers = {"application": application} if application else {}
        if token:
            self._headers["authorization"] = f"Bearer {token}"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **options: method(*args, headers=self._headers, **options)


def main(url: str, model: str, token: str, application: str = "") -> dict[str, Any]:
    client = Named(triton.InferenceServerClient(url=url), application)
    admin = Named(triton.InferenceServerClient(url=url), application, token)
    result = client.infer(model, inputs(), request_id="7", priority=2)
    seen: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model, "1"),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True)["config"],
        "index": client.get_model_repository_index(as_json=True)["models"],
        "echo": {d: bool(np.array_equal(result.as_numpy(f"out_{d.lower()}"), value(d, 3))) for d in TYPES},
        "id": result.get_response().id,
        "stats": client.get_inference_statistics(model, as_json=True)["model_stats"],
        "selected": [
            output.name
            for output in client.infer(model, inputs(), outputs=[triton.InferRequestedOutput("out_int8")])
            .get_response()
            .outputs
        ],
        "errors": errors(client, model),
        "health": health(url, application),
        "stream": stream(client, model),
    }
    admin.unload_model(model)
    seen["ready_after_unload"] = client.is_model_ready(model)
    admin.load_model(model)
    seen["ready_after_load"] = client.is_model_ready(model)
    return seen


def stream(client: Named, model: str) -> list[list[Any]]:
    """Forty requests on one stream, one of them wrong: identity and error of each answer, in the order they came."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for index in range(40):
        name = "other" if index == 7 else model
        client._client.async_stream_infer(name, inputs(), request_id=str(index))
    found: list[list[Any]] = []
    for _ in range(40):
        result, error = answers.get(timeout=60)
        found.append([None, error.message()] if error is not None else [result.get_response().id, ""])
    client._client.stop_stream()
    return found


def health(url: str, application: str) -> list[int]:
    """grpc.health.v1 by hand: an empty request, and the status (field 1) of the answer."""
    with grpc.insecure_channel(url) as channel:
        metadata = (("application", application),) if application else ()
        return list(channel.unary_unary("/grpc.health.v1.Health/Check")(b"", metadata=metadata))


def errors(client: Named, model: str) -> dict[str, list[str]]:
    short = triton.InferInput("in_fp32", [1, 3], "FP32")
    short.set_data_from_numpy(np.zeros((1, 3), np.float32))
    wrong: dict[str, Callable[[], Any]] = {
        "unknown model": lambda: client.infer("other", inputs()),
        "unknown version": lambda: client.infer(model, inputs(), model_version="9"),
        "missing inputs": lambda: client.infer(model, [short]),
        "unknown output": lambda: client.infer(model, inputs(), outputs=[triton.InferRequestedOutput("no")]),
        "a sequence": lambda: client.infer(model, inputs(), sequence_id=3, sequence_start=True),
        "unload without a token": lambda: client.unload_model(model),
        "shared memory": client.get_system_shared_memory_status,
    }
    found = {}
    for name, ask in wrong.items():
        try:
            ask()
            found[name] = ["no error", ""]
        except InferenceServerException as error:
            found[name] = [str(error.status()), error.message()]
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:]), default=str))  # noqa: T201 - its output is its answer
