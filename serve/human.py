"""The human side: /docs, /predict with raw rows, /stats, on FastAPI. Slower and friendlier than /v2.

Rows go through the bundle's transforms and come back as labels with probabilities, or values. Invariant: every error
is `{"error": …}` like those of the protocol, FastAPI's own validation included.
"""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Any

import numpy as np
import psutil
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from cluster.errors import MantaError
from serve.codec import InferRequest
from serve.handler import Answer, Handler, error_answer
from serve.model import ServedModel
from serve.problems import bad_request
from serve.statistics import ModelStatistics


class PredictRequest(BaseModel):
    """Raw rows: objects by column name where the model was trained on a table, else arrays of one row's shape."""

    model_config = ConfigDict(extra="forbid")
    rows: list[Any] = Field(min_length=1, description="one entry a row")
    version: str = Field(default="", description="a version; the endpoint's default when empty")


class PredictResponse(BaseModel):
    """Predictions in the order of the rows."""

    model: str
    version: str
    predictions: list[dict[str, Any]]


def build_human_side(handler: Handler) -> FastAPI:
    """The FastAPI application of one endpoint."""
    name = handler.repository.name
    app = FastAPI(
        title=f"Manta endpoint '{name}'", summary="Open Inference Protocol v2 at /v2", strict_content_type=False
    )

    @app.get("/", summary="Where things are")
    async def root() -> dict[str, Any]:
        base = f"/v2/models/{name}"
        return {"endpoint": name, "infer": f"{base}/infer", "metadata": base, "predict": "/predict", "docs": "/docs"}

    @app.post("/predict", summary="Raw rows in, labels or values out")
    async def predict(request: PredictRequest) -> PredictResponse:
        model = handler.repository.find(name, request.version)
        inputs = await asyncio.to_thread(rows_to_inputs, model, request.rows)
        answer = await model.infer(InferRequest(inputs))
        output = next(iter(answer.outputs.values()))
        return PredictResponse(
            model=name, version=model.version, predictions=readable(output, model.manifest.task, model.manifest.classes)
        )

    @app.get("/stats", summary="Latency, throughput and batches of the most recent requests")
    async def stats() -> list[dict[str, Any]]:
        return [window(model.statistics) for model in handler.repository.models.values()]

    @app.get("/metrics", summary="Prometheus metrics of this replica")
    async def metrics() -> Response:
        from serve.metrics import render

        return Response(await asyncio.to_thread(render, handler.repository), media_type="text/plain; version=0.0.4")

    _shape_errors(app)
    return app


def window(statistics: ModelStatistics) -> dict[str, Any]:
    """One entry of /stats."""
    calls = max(statistics.execution_count, 1)
    return {
        "name": statistics.name,
        "version": statistics.version,
        "rows_per_call": round(statistics.inference_count / calls, 3),
        "outcomes": dict(statistics.outcomes),
        **statistics.window(),
        "process": process_usage(),
    }


def process_usage() -> dict[str, float]:
    """CPU since the last question and resident memory of this process."""
    process = _process(os.getpid())
    return {"cpu_percent": process.cpu_percent(), "memory_bytes": process.memory_info().rss}


@functools.cache
def _process(pid: int) -> psutil.Process:
    """psutil measures CPU between two questions to the same object."""
    return psutil.Process(pid)


def rows_to_inputs(model: ServedModel, rows: list[Any]) -> dict[str, np.ndarray]:
    """Raw rows as the model's input arrays. Raises ProtocolError, DataError."""
    transforms = model.transforms
    if transforms is not None:
        if not all(isinstance(row, dict) for row in rows):
            raise bad_request("a row is not an object", rule="rows are objects: column name -> value")
        inputs: dict[str, np.ndarray] = transforms.apply_rows(rows)
        return inputs
    if len(model.signature.inputs) != 1:
        raise bad_request("the model has several inputs and no transforms", rule="send tensors to /v2 instead")
    tensor = model.signature.inputs[0]
    try:
        array = np.asarray(rows, dtype=tensor.dtype)
    except (ValueError, TypeError, OverflowError):
        raise bad_request(
            f"a row is not an array of {tensor.datatype}", rule=f"of shape {list(tensor.shape[1:])}"
        ) from None
    return {tensor.name: array}


def readable(output: np.ndarray, task: str, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Logits (N, C) as labels with probabilities, or (N, 1) as values."""
    if task != "classification":
        return [{"value": float(value)} for value in output.reshape(len(output), -1)[:, 0]]
    shifted = output.astype(np.float64) - output.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    found = []
    for row in probabilities:
        best = int(row.argmax())
        by_label = {label: round(float(p), 6) for label, p in zip(classes, row, strict=True)}
        found.append({"label": classes[best], "probability": round(float(row[best]), 6), "probabilities": by_label})
    return found


def _shape_errors(app: FastAPI) -> None:
    @app.exception_handler(MantaError)
    async def ours(_: Request, error: MantaError) -> Response:
        return _response(error_answer(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        return _response(error_answer(bad_request(f"{where}: {first['msg']}", status=422)))

    @app.exception_handler(HTTPException)
    async def routed(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"internal error: {type(error).__name__}"}, 500)


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)
