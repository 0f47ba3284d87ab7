"""The human side: /docs, /predict with raw rows or image files, /stats, on FastAPI. Slower and friendlier than /v2.

Rows and images go through the bundle's transforms and come back as labels with probabilities, or values. Invariant:
every error is `{"error": …}` like those of the protocol, and a wrong body is 400 there as here. A body is read as JSON
(RFC 8259: no NaN) whatever its content type says, so that `curl -d` works.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from cluster.errors import MantaError
from serve.doors.images import FORMATS, image_pixels, image_rows
from serve.doors.raw_rows import rows_to_inputs
from serve.doors.uploads import uploaded_files
from serve.handler import Answer, Handler, error_answer, read_json
from serve.limits import Limits
from serve.model import ServedModel
from serve.observe.monitor import add_monitor
from serve.problems import bad_request
from serve.protocol.codec import InferRequest

SMALL_BYTES = 64 << 10  # of JSON that the event loop may read itself: about a millisecond
DECODERS = 2  # images that are decoded at a time: each may take 100 MiB (serve/doors/images.py)
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": {"type": "array", "items": _FILE}}, "required": ["file"]}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            **{f"image/{name.lower()}": {"schema": _FILE} for name in FORMATS},
        },
    }
}


class WrongAnswer(BaseModel):
    """Every error."""

    error: str


WRONG: dict[int | str, dict[str, Any]] = {"4XX": {"model": WrongAnswer, "description": "what is wrong"}}


class PredictRequest(BaseModel):
    """Raw rows: objects by column name where the model was trained on a table, else arrays of one row's shape (or
    `{input name: array}`), as they were before training's standardizing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rows: list[Any] = Field(min_length=1, description="one entry a row")
    version: str = Field(default="", description="a version; the endpoint's default when empty")


class PredictResponse(BaseModel):
    """Predictions in the order of the rows."""

    model: str
    version: str
    predictions: list[dict[str, Any]]


class RowsResponse(PredictResponse):
    """Predictions in the order of the rows."""

    unseen: dict[str, list[Any]] = Field(
        default={},
        description="column -> values that training did not have: unknown categories, numbers far outside its range; "
        "absent where there are none. A prediction names the columns of its own row",
    )


class ImageResponse(PredictResponse):
    """Predictions in the order of the files."""

    notes: list[str] = Field(description="what was done to the images that their sender may not expect")


def build_human_side(handler: Handler) -> FastAPI:
    """The FastAPI application of one endpoint."""
    name = handler.repository.name
    app = FastAPI(
        title=f"Manta endpoint '{name}'",
        summary="Open Inference Protocol v2 at /v2",
        strict_content_type=False,
        redirect_slashes=False,  # to an address that the client's Host header names
    )

    @app.get("/", summary="Where things are")
    async def root() -> dict[str, Any]:
        base = f"/v2/models/{name}"
        return {"endpoint": name, "infer": f"{base}/infer", "metadata": base, "predict": "/predict", "docs": "/docs"}

    _add_rows(app, handler)
    _add_images(app, handler)
    add_monitor(app, handler.repository)
    _shape_errors(app)
    return app


def _add_rows(app: FastAPI, handler: Handler) -> None:
    @app.post(
        "/predict",
        summary="Raw rows in, labels or values out",
        openapi_extra=_rows_body(),
        responses=WRONG,
        response_model_exclude_unset=True,
    )
    async def predict(request: Request) -> RowsResponse:
        body = await request.body()
        small = len(body) <= SMALL_BYTES
        asked = (
            read_request(body, handler.limits) if small else await asyncio.to_thread(read_request, body, handler.limits)
        )
        model = handler.repository.find(handler.repository.name, asked.version)
        try:
            read = await asyncio.to_thread(rows_to_inputs, model, asked.rows)
        except MantaError:
            model.statistics.refused("bad_request")
            raise
        answer = await predicted(model, read.inputs)
        for row, columns in read.columns.items():
            answer["predictions"][row]["unseen"] = columns
        return RowsResponse(**answer, unseen=read.unseen) if read.unseen else RowsResponse(**answer)


def _add_images(app: FastAPI, handler: Handler) -> None:
    decoders = asyncio.Semaphore(DECODERS)

    @app.post(
        "/predict/image", summary="Image files in, labels or values out", openapi_extra=IMAGE_BODY, responses=WRONG
    )
    async def predict_image(request: Request, version: str = "") -> ImageResponse:
        model = handler.repository.find(handler.repository.name, version)
        image_pixels(model.transforms)  # a model that takes no images is told before the body is read
        files = await uploaded_files(request, handler.limits)
        async with decoders:
            inputs, notes = await asyncio.to_thread(image_rows, files, model.transforms)
        return ImageResponse(**await predicted(model, inputs), notes=notes)


def read_request(body: bytes, limits: Limits) -> PredictRequest:
    """The body of /predict. Raises ProtocolError 400."""
    raw = read_json(body, limits)
    try:
        return PredictRequest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise bad_request(f"{where}: {first['msg']}", rule='the body is {"rows": [one entry a row]}') from None


async def predicted(model: ServedModel, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Ask the model, and say its first output in words."""
    answer = await model.infer(InferRequest(inputs))
    output = next(iter(answer.outputs.values()))
    found = readable(output, model.manifest.task, model.manifest.classes)
    return {"model": model.name, "version": model.version, "predictions": found}


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
        return _response(error_answer(bad_request(f"{where}: {first['msg']}")))

    @app.exception_handler(HTTPException)
    async def routed(_: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"internal error: {type(error).__name__}"}, 500)


def _rows_body() -> dict[str, Any]:
    schema = PredictRequest.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _response(answer: Answer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)
