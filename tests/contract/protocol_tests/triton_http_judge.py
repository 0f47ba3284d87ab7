"""Run by the judge's own Python: asks a server through `tritonclient.http` and prints what it saw as JSON.

Usage: python triton_http_judge.py URL MODEL ADMIN_TOKEN. Imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "FP64": np.float64, "BYTES": np.object_,
}  # fmt: skip


def value(datatype: str, rows: int) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[f"row {i}".encode(), "ü".encode()] for i in range(rows)], dtype=np.object_)
    dtype = np.dtype(TYPES[datatype])
    edges = [0, 1] if datatype == "BOOL" else (
        [np.finfo(dtype).min, np.finfo(dtype).max] if dtype.kind == "f" else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    )  # fmt: skip
    return np.array([edges] * rows, dtype=dtype)


def inputs(rows: int = 3, *, binary: bool = True) -> list[triton.InferInput]:
    found = []
    for datatype in TYPES:
        tensor = triton.InferInput(f"in_{datatype.lower()}", [rows, 2], datatype)
        tensor.set_data_from_numpy(value(datatype, rows), binary_data=binary or datatype == "FP16")
        found.append(tensor)
    return found


def echoes(result: triton.InferResult, rows: int = 3) -> dict[str, bool]:
    found = {}
    for datatype in TYPES:
        array = result.as_numpy(f"out_{datatype.lower()}")
        if datatype == "BYTES" and array is not None:  # strings of a JSON answer stay str in the client
            array = np.vectorize(lambda item: item.encode() if isinstance(item, str) else item, otypes=[object])(array)
        found[datatype] = array is not None and np.array_equal(array, value(datatype, rows))
    return found


def main(url: str, model: str, token: str) -> dict[str, Any]:
    admin = {"Authorization": f"Bearer {token}"}
    client = triton.InferenceServerClient(url=url, concurrency=4)
    seen: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "version_ready": client.is_model_ready(model, "1"),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(model),
        "config": client.get_model_config(model),
        "index": client.get_model_repository_index(),
    }
    forms: dict[str, Callable[[], triton.InferResult]] = {
        "binary both ways, the client's default": lambda: client.infer(model, inputs(), request_id="7"),
        "JSON in": lambda: client.infer(model, inputs(binary=False)),
        "a version": lambda: client.infer(model, inputs(), model_version="1"),
        "gzip both ways": lambda: client.infer(
            model, inputs(), request_compression_algorithm="gzip", response_compression_algorithm="gzip"
        ),
        "deflate both ways": lambda: client.infer(
            model, inputs(), request_compression_algorithm="deflate", response_compression_algorithm="deflate"
        ),
        "priority and timeout": lambda: client.infer(model, inputs(), priority=1, timeout=10_000_000),
        "asynchronous": lambda: client.async_infer(model, inputs()).get_result(),
    }
    seen["echo"] = {name: echoes(ask()) for name, ask in forms.items()}
    json_outputs = [triton.InferRequestedOutput(f"out_{d.lower()}", binary_data=d == "FP16") for d in TYPES]
    seen["echo"]["JSON out"] = echoes(client.infer(model, inputs(), outputs=json_outputs))
    some = client.infer(model, inputs(), outputs=[triton.InferRequestedOutput("out_int8")], request_id="me")
    seen["selected"] = [tensor["name"] for tensor in some.get_response()["outputs"]]
    seen["id"] = some.get_response()["id"]
    half = triton.InferInput("in_fp32", [1, 2], "BF16")
    half.set_data_from_numpy(np.array([[1.5, -2]], dtype=ml_dtypes.bfloat16))
    others = [tensor for tensor in inputs(1) if tensor.name() != "in_fp32"]
    seen["bf16"] = client.infer(model, [half, *others]).as_numpy("out_fp32").tolist()
    seen["stats"] = client.get_inference_statistics(model, "1")
    seen["all_stats"] = [entry["name"] for entry in client.get_inference_statistics()["model_stats"]]
    seen["errors"] = errors(client, model, admin)
    client.unload_model(model, headers=admin)
    seen["ready_after_unload"] = client.is_model_ready(model)
    seen["index_after_unload"] = client.get_model_repository_index()
    client.load_model(model, headers=admin)
    seen["ready_after_load"] = client.is_model_ready(model)
    seen["echo"]["after unload and load"] = echoes(client.infer(model, inputs()))
    return seen


def errors(client: triton.InferenceServerClient, model: str, admin: dict[str, str]) -> dict[str, list[str]]:
    short = triton.InferInput("in_fp32", [1, 3], "FP32")
    short.set_data_from_numpy(np.zeros((1, 3), np.float32))
    twice = inputs(1)
    wrong: dict[str, Callable[[], Any]] = {
        "unknown model": lambda: client.infer("other", inputs()),
        "unknown version": lambda: client.infer(model, inputs(), model_version="9"),
        "version is no number": lambda: client.infer(model, inputs(), model_version="x"),
        "missing inputs": lambda: client.infer(model, [short]),
        "input twice": lambda: client.infer(model, [*twice, twice[0]]),
        "unknown output": lambda: client.infer(model, inputs(), outputs=[triton.InferRequestedOutput("no")]),
        "a sequence": lambda: client.infer(model, inputs(), sequence_id=3, sequence_start=True),
        "shared memory": client.get_system_shared_memory_status,
        "trace settings": client.get_trace_settings,
        "log settings": client.get_log_settings,
        "load with a configuration": lambda: client.load_model(model, headers=admin, config="{}"),
        "load of an unknown model": lambda: client.load_model("other", headers=admin),
        "unload without a token": lambda: client.unload_model(model),
        "unload of an unknown model": lambda: client.unload_model("other", headers=admin),
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
