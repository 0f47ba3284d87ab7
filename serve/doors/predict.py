"""What is not below /v2, on FastAPI: /predict with raw rows or image files, /docs, /stats, /metrics.

Rows and images go through the bundle's transforms and come back as labels with probabilities, or values. Invariant:
every error is `{"error": …}` like those of the protocol, and a wrong body is 400 there as here. A body is read as JSON
(RFC 8259: no NaN) whatever its content type, so that `curl -d` works.
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
from serve.doors.images import FORMATS, ImagesRequest, image_pixels, read_images
from serve.doors.raw_rows import RowsRequest, read_rows
from serve.doors.rest import Answer, error_answer, read_json
from serve.doors.uploads import uploaded_files
from serve.handlers.controlplane import ControlPlane
from serve.handlers.dataplane import DataPlane, counting_bad_requests
from serve.models.model import ServedModel
from serve.observe.monitor import add_monitor
from serve.protocol.codec import InferAnswer
from serve.protocol.errors import bad_request
from serve.protocol.limits import Limits

SMALL_BYTES = 64 << 10  # of JSON that the event loop may read itself: about a millisecond
DECODERS = 2  # images that are decoded at a time: each may take 100 MiB (serve/doors/images.py)
IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
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


def predict_app(dataplane: DataPlane, controlplane: ControlPlane) -> FastAPI:
    """The FastAPI application of one endpoint."""
    name = dataplane.repository.name
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

    @app.get("/health", summary="Ready (200) or not (503), as /v2/health/ready", responses={503: {}})
    async def health() -> Response:
        return JSONResponse({"ready": dataplane.ready}, 200 if dataplane.ready else 503)

    _add_rows(app, dataplane)
    _add_images(app, dataplane)
    add_monitor(app, controlplane)
    _shape_errors(app)
    return app


def _add_rows(app: FastAPI, dataplane: DataPlane) -> None:
    name = dataplane.repository.name

    @app.post(
        "/predict",
        summary="Raw rows in, labels or values out",
        openapi_extra=_rows_body(),
        responses=WRONG,
        response_model_exclude_unset=True,
    )
    async def predict(request: Request) -> RowsResponse:
        body = await request.body()
        with counting_bad_requests(dataplane.repository.default):  # the version is in the body
            check_is_no_file(request.headers.get("content-type", ""), body)
            small, limits = len(body) <= SMALL_BYTES, dataplane.limits
            asked = read_request(body, limits) if small else await asyncio.to_thread(read_request, body, limits)
        model = dataplane.admit(name, asked.version)
        with counting_bad_requests(model):
            model.check_size(len(asked.rows))

        async def decode(model: ServedModel) -> RowsRequest:
            return await asyncio.to_thread(read_rows, model, asked.rows)

        model, read, answer = await dataplane.infer(name, asked.version, decode)
        found = in_words(model, answer)
        for row, columns in read.columns.items():
            found["predictions"][row]["unseen"] = columns
        return RowsResponse(**found, unseen=read.unseen) if read.unseen else RowsResponse(**found)


def _add_images(app: FastAPI, dataplane: DataPlane) -> None:
    name, decoders = dataplane.repository.name, asyncio.Semaphore(DECODERS)

    @app.post(
        "/predict/image", summary="Image files in, labels or values out", openapi_extra=IMAGE_BODY, responses=WRONG
    )
    async def predict_image(request: Request, version: str = "") -> ImageResponse:
        model = dataplane.admit(name, version)
        with counting_bad_requests(model):  # refused before the body is read: a model that takes no images
            image_pixels(model.transforms)
        files = await uploaded_files(request, dataplane.limits)

        async def decode(model: ServedModel) -> ImagesRequest:
            async with decoders:
                return await asyncio.to_thread(read_images, files, model.transforms)

        model, read, answer = await dataplane.infer(name, version, decode)
        return ImageResponse(**in_words(model, answer), notes=read.notes)


def check_is_no_file(content_type: str, body: bytes) -> None:
    """Raise ProtocolError 415 for a file, by its kind or its first bytes."""
    kind = content_type.lower()
    if kind.startswith(("multipart/", "image/")) or body.startswith(IMAGE_STARTS):
        raise bad_request(
            "the body is a file",
            status=415,
            rule='/predict takes JSON: {"rows": [one entry a row]}',
            remedy="Send image files to /predict/image.",
        )


def read_request(body: bytes, limits: Limits) -> PredictRequest:
    """The body of /predict. Raises ProtocolError 400."""
    raw = read_json(body, limits)
    try:
        return PredictRequest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise bad_request(f"{where}: {first['msg']}", rule='the body is {"rows": [one entry a row]}') from None


def in_words(model: ServedModel, answer: InferAnswer) -> dict[str, Any]:
    """The first output as labels or values."""
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
