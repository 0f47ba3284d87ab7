"""Open Inference Protocol v2, gRPC: inference messages to numpy and numpy to messages.

Invariant: tensors are all raw or all in `contents`, never mixed; whatever a message holds, the only exception that
leaves is ProtocolError. Not covered: shared memory (refused), sequences (refused by serve/handlers/dataplane.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.bundle.signature import DATATYPE_OF
from serve.proto import inference_pb2
from serve.protocol.codec import InferRequest, RequestedOutput
from serve.protocol.errors import bad_request
from serve.protocol.tensors import array_of_bytes, array_of_json, bytes_of_array, check_count, check_shape

CONTENTS_OF = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode_message(request: Any, elements_max: int) -> InferRequest:
    """A ModelInferRequest as arrays. Raises ProtocolError."""
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad_request(f"{len(raw)} raw contents for {len(request.inputs)} inputs", rule="one for each input")
    if not request.inputs:
        raise bad_request("the request has no inputs")
    inputs: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(request.inputs):
        name = tensor.name
        if not name or "\0" in name or name in inputs:
            raise bad_request(f"an input's name is {name[:40]!r}", rule="names are not empty, and each comes once")
        shape = check_shape(list(tensor.shape), name, elements_max)
        if "shared_memory_region" in tensor.parameters:
            raise bad_request(f"input {name!r} lies in shared memory", rule="it is not served", status=501)
        if raw:
            if tensor.HasField("contents"):
                raise bad_request(f"input {name!r} has contents beside raw contents", rule="all raw, or none")
            inputs[name] = array_of_bytes(raw[index], tensor.datatype, shape, name)
        else:
            inputs[name] = _array_of_contents(tensor, shape)
    parameters = _parameters(request.parameters)
    return InferRequest(
        inputs=inputs,
        outputs=_outputs(request.outputs),
        id=request.id or None,
        priority=check_count(parameters.get("priority", 0), "priority"),
        timeout_us=check_count(parameters.get("timeout", 0), "timeout"),
        parameters=parameters,
    )


def encode_message(model: str, version: str, identity: str, outputs: Mapping[str, np.ndarray]) -> Any:
    """A ModelInferResponse with raw contents."""
    message = inference_pb2.ModelInferResponse(model_name=model, model_version=version, id=identity)
    for name, array in outputs.items():
        datatype = DATATYPE_OF[array.dtype]
        message.outputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_output_contents.append(bytes_of_array(array, datatype))
    return message


def message_of_json(message: Any, raw: Mapping[str, Any]) -> Any:
    """A message from JSON-able values; keys that the message lacks are left out."""
    from google.protobuf.json_format import ParseDict

    return ParseDict(dict(raw), message(), ignore_unknown_fields=True)


def _array_of_contents(tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    field = CONTENTS_OF.get(tensor.datatype)
    if field is None:
        raise bad_request(
            f"input {tensor.name!r} is {tensor.datatype[:40]} in contents", rule="it needs raw_input_contents"
        )
    values = list(getattr(tensor.contents, field))
    if tensor.datatype == "BYTES":
        found = np.empty(len(values), dtype=object)
        found[:] = values
        if len(values) != int(np.prod(shape, dtype=np.int64)):
            raise bad_request(f"input {tensor.name!r} has {len(values)} values", rule=f"its shape is {list(shape)}")
        return found.reshape(shape)
    return array_of_json(values, tensor.datatype, shape, tensor.name, flags=False)


def _outputs(entries: Iterable[Any]) -> tuple[RequestedOutput, ...]:
    found: dict[str, RequestedOutput] = {}
    for entry in entries:
        if entry.name in found:
            raise bad_request(f"output {entry.name[:80]!r} is asked for twice")
        parameters = _parameters(entry.parameters)
        if "shared_memory_region" in parameters:
            raise bad_request(f"output {entry.name[:80]!r} is asked for in shared memory", status=501)
        found[entry.name] = RequestedOutput(
            entry.name, classes=check_count(parameters.get("classification", 0), "top-k")
        )
    return tuple(found.values())


def _parameters(entries: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in entries.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            found[key] = getattr(value, choice)
    return found
