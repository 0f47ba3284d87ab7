"""Open Inference Protocol v2, REST: bytes to numpy and numpy to bytes. Needs numpy and orjson only.

Wire forms: JSON (`data`, flat or nested), binary tensors after the JSON (Triton's `binary_tensor_data` extension,
`Inference-Header-Content-Length` = length of the JSON) and raw binary (header value 0, no JSON at all).

Invariant: `decode` of what `encode` wrote gives equal arrays, for each datatype; whatever the bytes are, the only
exception that leaves is ProtocolError; memory taken is bounded by the size of the body and by `Limits`.

Covered: BOOL, INT*, UINT*, FP16, FP32, FP64, BYTES; BF16 on the wire, as float32 in numpy; requested outputs with
`binary_data` and `classification`; id, priority, timeout. Not covered: compression (compression.py), shared
memory (refused), sequences (refused by the data plane).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from cluster.bundle.signature import DATATYPE_OF, TensorSignature, TensorSpec
from serve.protocol.errors import bad_request
from serve.protocol.limits import Limits
from serve.protocol.tensors import (
    array_of_bytes,
    array_of_json,
    bytes_of_array,
    check_count,
    check_shape,
    tensor_of_json,
)

MEMORY_PARAMETERS = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
OPTIONS = orjson.OPT_SERIALIZE_NUMPY
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class RequestedOutput:
    """One entry of `outputs`: None for `binary` means "as in `InferRequest.binary_outputs`"."""

    name: str
    binary: bool | None = None
    classes: int = 0
    """Top-k labels instead of the tensor when above 0."""


@dataclass(frozen=True)
class InferRequest:
    """A decoded request."""

    inputs: dict[str, np.ndarray]
    outputs: tuple[RequestedOutput, ...] = ()
    """Empty: all outputs of the model."""
    id: str | None = None
    binary_outputs: bool = False
    """Default form of the outputs."""
    priority: int = 0
    """0 is the model's default, 1 the most urgent."""
    timeout_us: int = 0
    """Largest wait in the queue; 0 for none."""
    parameters: dict[str, Any] = field(default_factory=dict)
    is_finite: bool = False
    """Decoding has shown that no tensor holds NaN or infinity."""


@dataclass(frozen=True)
class InferAnswer:
    """What the model answered: arrays by output name, in order."""

    model: str
    version: str
    outputs: dict[str, np.ndarray]
    id: str | None = None


def decode(body: bytes, header_length: str | None, signature: TensorSignature, limits: Limits) -> InferRequest:
    """Decode a request body. `header_length` is the value of Inference-Header-Content-Length, None without it."""
    if header_length is None:
        flags = b"true" in body or b"false" in body  # far cheaper than to look at each number
        return _decode_json(_parse(body, limits), memoryview(b""), limits, flags)
    length = _header_length(header_length, len(body))
    if length == 0 and body:
        return _decode_raw(body, signature)
    view = memoryview(body)
    return _decode_json(_parse(view[:length], limits), view[length:], limits, True)


def encode(answer: InferAnswer, request: InferRequest) -> tuple[bytes, int | None]:
    """Encode an answer as the request asked. Returns the body and the JSON's length, None when all is JSON."""
    wanted = {output.name: output.binary for output in request.outputs}
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    has_binary = False
    for name, array in answer.outputs.items():
        datatype = DATATYPE_OF[array.dtype]
        binary = wanted.get(name)
        if binary if binary is not None else request.binary_outputs:
            has_binary = True
            blobs.append(bytes_of_array(array, datatype))
            parameters = {"binary_data_size": len(blobs[-1])}
            tensors.append({"name": name, "shape": array.shape, "datatype": datatype, "parameters": parameters})
        else:
            data = _json_data(name, array, datatype)
            tensors.append({"name": name, "shape": array.shape, "datatype": datatype, "data": data})
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id is not None:
        head["id"] = answer.id
    head["outputs"] = tensors
    json_bytes = orjson.dumps(head, option=OPTIONS)
    if not has_binary:
        return json_bytes, None
    return b"".join((json_bytes, *blobs)), len(json_bytes)


def encode_request(request: InferRequest, *, binary: bool = False) -> tuple[bytes, int | None]:
    """The client's half: encode a request whose inputs are all JSON or all binary."""
    tensors: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in request.inputs.items():
        datatype = DATATYPE_OF[array.dtype]
        tensor: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype}
        if binary:
            blobs.append(bytes_of_array(array, datatype))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = _json_data(name, array, datatype)
        tensors.append(tensor)
    parameters = {**request.parameters}
    if request.binary_outputs:
        parameters["binary_data_output"] = True
    if request.priority:
        parameters["priority"] = request.priority
    if request.timeout_us:
        parameters["timeout"] = request.timeout_us
    head: dict[str, Any] = {"inputs": tensors}
    if request.id is not None:
        head["id"] = request.id
    if parameters:
        head["parameters"] = parameters
    if request.outputs:
        head["outputs"] = [_output_json(output) for output in request.outputs]
    json_bytes = orjson.dumps(head, option=OPTIONS)
    return (b"".join((json_bytes, *blobs)), len(json_bytes)) if binary else (json_bytes, None)


def decode_answer(body: bytes, header_length: int | None) -> InferAnswer:
    """The client's half: decode an answer."""
    head_bytes = body if header_length is None else body[:header_length]
    raw = orjson.loads(head_bytes)
    rest = memoryview(body)[len(head_bytes) :]
    outputs: dict[str, np.ndarray] = {}
    for tensor in raw["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = array_of_json(tensor["data"], tensor["datatype"], tuple(tensor["shape"]), tensor["name"])
        else:
            array = array_of_bytes(rest[:size], tensor["datatype"], tuple(tensor["shape"]), tensor["name"])
            rest = rest[size:]
        outputs[tensor["name"]] = array
    return InferAnswer(raw["model_name"], raw.get("model_version", ""), outputs, raw.get("id"))


def _header_length(text: str, body_length: int) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.removeprefix("-").isdigit()):
        raise bad_request(f"Inference-Header-Content-Length is {text[:40]!r}", rule="it must be an integer")
    value = int(digits) if len(digits) < 12 else INT32_MAX + 1
    if not 0 <= value <= INT32_MAX:
        raise bad_request(f"Inference-Header-Content-Length is {digits[:40]}", rule="it must be in 0..2147483647")
    if value > body_length:
        raise bad_request(
            f"Inference-Header-Content-Length is {value}, the body has {body_length} bytes",
            rule="the JSON lies at the start of the body",
        )
    return value


def _parse(data: bytes | memoryview, limits: Limits) -> dict[str, Any]:
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(raw, dict):
        raise bad_request(f"the body is a JSON {_kind(raw)}", rule="it must be an object with 'inputs'")
    for key, value in raw.items():
        if key not in ("inputs", "outputs", "id", "parameters"):
            check_depth(value, limits.json_depth)
    return raw


def _decode_json(raw: dict[str, Any], rest: memoryview, limits: Limits, flags: bool) -> InferRequest:
    entries = raw.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise bad_request("the request has no 'inputs'", rule="'inputs' must be a non-empty list of tensors")
    inputs: dict[str, np.ndarray] = {}
    all_finite = True
    for entry in entries:
        name, array, rest, is_finite = _decode_input(entry, rest, limits, flags)
        all_finite = all_finite and is_finite
        if name in inputs:
            raise bad_request(f"input {name!r} is given twice")
        inputs[name] = array
    if len(rest):
        raise bad_request(f"unexpected additional input data: {len(rest)} bytes are left after the last tensor")
    parameters = _parameters(raw.get("parameters"), "the request")
    return InferRequest(
        inputs=inputs,
        outputs=_decode_outputs(raw.get("outputs")),
        id=_name(raw["id"], "the request's id", limits, empty=True) if raw.get("id") is not None else None,
        binary_outputs=_flag(parameters.get("binary_data_output", False), "binary_data_output"),
        priority=check_count(parameters.get("priority", 0), "priority"),
        timeout_us=check_count(parameters.get("timeout", 0), "timeout"),
        parameters=parameters,
        is_finite=all_finite,
    )


def _decode_input(
    entry: Any, rest: memoryview, limits: Limits, flags: bool
) -> tuple[str, np.ndarray, memoryview, bool]:
    """Name, array, what is left of the binary part, and whether all numbers are known to be finite."""
    if not isinstance(entry, dict):
        raise bad_request(f"an input is a JSON {_kind(entry)}", rule="an input must be an object")
    name = _name(entry.get("name"), "an input's name", limits)
    datatype = entry.get("datatype")
    if not isinstance(datatype, str):
        raise bad_request(f"input {name!r} has no 'datatype'")
    shape = check_shape(entry.get("shape"), name, limits.elements)
    parameters = entry.get("parameters")
    if parameters is None:
        array, is_finite = tensor_of_json(entry.get("data"), datatype, shape, name, flags=flags)
        return name, array, rest, is_finite
    parameters = _parameters(parameters, f"input {name!r}")
    if any(key in parameters for key in MEMORY_PARAMETERS):
        raise bad_request(f"input {name!r} lies in shared memory", rule="shared memory is not served", status=501)
    if "binary_data_size" not in parameters:
        array, is_finite = tensor_of_json(entry.get("data"), datatype, shape, name, flags=flags)
        return name, array, rest, is_finite
    if "data" in entry:
        raise bad_request(f"input {name!r} has both 'data' and 'binary_data_size'")
    size = check_count(parameters["binary_data_size"], "binary_data_size")
    if size > len(rest):
        raise bad_request(f"input {name!r} has {len(rest)} bytes left: expecting {size - len(rest)} additional bytes")
    return name, array_of_bytes(rest[:size], datatype, shape, name), rest[size:], False


def _decode_outputs(raw: Any) -> tuple[RequestedOutput, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise bad_request(f"'outputs' is a JSON {_kind(raw)}", rule="it must be a list")
    found: dict[str, RequestedOutput] = {}
    for entry in raw:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise bad_request("an entry of 'outputs' has no 'name'")
        name = entry["name"]
        if name in found:
            raise bad_request(f"output {name[:80]!r} is asked for twice")
        parameters = _parameters(entry.get("parameters"), f"output {name[:80]!r}")
        if any(key in parameters for key in MEMORY_PARAMETERS):
            raise bad_request(f"output {name[:80]!r} is asked for in shared memory", status=501)
        binary = parameters.get("binary_data")
        found[name] = RequestedOutput(
            name,
            None if binary is None else _flag(binary, "binary_data"),
            check_count(parameters.get("classification", 0), "classification"),
        )
    return tuple(found.values())


def _decode_raw(body: bytes, signature: TensorSignature) -> InferRequest:
    """A body without JSON: one input, batch 1, all outputs binary."""
    if len(signature.inputs) != 1:
        raise bad_request(
            "the body is raw binary (Inference-Header-Content-Length: 0)",
            rule=f"that needs a model with one input, this one has {len(signature.inputs)}",
        )
    tensor = signature.inputs[0]
    shape = _raw_shape(tensor, len(body))
    if tensor.datatype == "BYTES":
        body = len(body).to_bytes(4, "little") + body
    return InferRequest({tensor.name: array_of_bytes(body, tensor.datatype, shape, tensor.name)}, binary_outputs=True)


def _raw_shape(tensor: TensorSpec, num_bytes: int) -> tuple[int, ...]:
    item = tensor.item_shape
    free = [axis for axis, size in enumerate(item) if size == -1]
    if tensor.datatype == "BYTES":
        if item not in ((), (1,), (-1,)):
            raise bad_request("the body is raw binary", rule="a BYTES input must have one element a row for that")
        return (1, *(1 for _ in item))
    if len(free) > 1:
        raise bad_request("the body is raw binary", rule="at most one axis beside the batch may vary in length")
    fixed = tensor.dtype.itemsize
    for size in item:
        fixed *= size if size != -1 else 1
    if not free:
        return (1, *item)
    if fixed == 0 or num_bytes % fixed:
        raise bad_request(f"the body has {num_bytes} bytes", rule=f"it must be a multiple of {fixed}")
    return (1, *(num_bytes // fixed if size == -1 else size for size in item))


def check_depth(value: Any, depth_max: int) -> None:
    """Refuse JSON that is nested deeper than `depth_max`. Walks without recursion."""
    level = [value]
    for _ in range(depth_max):
        level = [
            child
            for node in level
            if isinstance(node, list | dict)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, list | dict)
        ]
        if not level:
            return
    raise bad_request("the JSON is nested too deeply", rule=f"at most {depth_max} levels")


def _json_data(name: str, array: np.ndarray, datatype: str) -> Any:
    if datatype == "FP16":
        raise bad_request(f"tensor {name!r} is FP16", rule="FP16 has no JSON form", remedy="Ask for binary data.")
    flat = np.ascontiguousarray(array).reshape(-1)
    if datatype != "BYTES":
        return flat
    try:
        return [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in flat]
    except UnicodeDecodeError:
        raise bad_request(
            f"tensor {name!r} has bytes that are not UTF-8",
            rule="JSON holds UTF-8 strings only",
            remedy="Ask for binary data.",
        ) from None


def _output_json(output: RequestedOutput) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if output.binary is not None:
        parameters["binary_data"] = output.binary
    if output.classes:
        parameters["classification"] = output.classes
    return {"name": output.name, "parameters": parameters} if parameters else {"name": output.name}


def _parameters(raw: Any, where: str) -> dict[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise bad_request(f"'parameters' of {where} is a JSON {_kind(raw)}", rule="it must be an object")
    for key, value in raw.items():
        if not isinstance(value, str | int | float | bool):
            raise bad_request(
                f"parameter {key[:80]!r} of {where} is a JSON {_kind(value)}", rule="values are strings, numbers, flags"
            )
    return raw


def _name(value: Any, what: str, limits: Limits, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise bad_request(f"{what} is missing", rule="it must be a non-empty string")
    if len(value) > limits.name_characters or "\0" in value:
        raise bad_request(
            f"{what} is {value[:40]!r}…", rule=f"at most {limits.name_characters} characters, none of them NUL"
        )
    return value


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise bad_request(f"{what} is {str(value)[:40]!r}", rule="it must be true or false")
    return value


def _kind(value: Any) -> str:
    return {dict: "object", list: "list", str: "string", bool: "flag", type(None): "null"}.get(type(value), "number")
