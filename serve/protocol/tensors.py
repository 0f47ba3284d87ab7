"""One tensor between the wire and numpy: shapes, JSON lists, little-endian bytes.

Invariant: an array that is returned has exactly the shape that was declared and owns no more memory than its
elements; everything else raises ProtocolError. BF16 becomes float32 (numpy has no bfloat16).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from cluster.bundle.signature import NUMPY_OF
from cluster.bundle.transforms.arrays import holds_flags
from serve.protocol.errors import bad_request, too_large

DIMENSIONS_MAX = 32  # numpy 2 allows 64; no model has as many
KINDS_OF = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}  # numpy kinds of JSON data that a datatype's kind takes
LENGTH = struct.Struct("<I")


def check_shape(raw: Any, name: str, elements_max: int) -> tuple[int, ...]:
    """A shape from the wire as a tuple of whole numbers, with a product that is small enough."""
    if not isinstance(raw, list | tuple) or len(raw) > DIMENSIONS_MAX:
        raise bad_request(f"input {name!r} has no usable 'shape'", rule=f"a list of at most {DIMENSIONS_MAX} sizes")
    elements = 1
    for size in raw:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise bad_request(f"input {name!r} has shape {str(raw)[:80]}", rule="sizes are whole numbers, 0 or more")
        elements *= size
    if elements > elements_max:
        raise too_large(f"input {name!r} has {elements} elements", f"at most {elements_max}")
    return tuple(raw)


def check_count(value: Any, what: str) -> int:
    """A whole number from the wire, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise bad_request(f"{what} is {str(value)[:40]!r}", rule="it must be a whole number, 0 or more")
    return value


def array_of_json(data: Any, datatype: str, shape: tuple[int, ...], name: str, *, flags: bool = True) -> np.ndarray:
    """A JSON list, nested like the shape or flat in row-major order, as an array.

    `flags`: whether `data` may hold true or false at all, which numpy takes for 1 and 0 beside numbers.
    """
    return tensor_of_json(data, datatype, shape, name, flags=flags)[0]


def tensor_of_json(
    data: Any, datatype: str, shape: tuple[int, ...], name: str, *, flags: bool = True
) -> tuple[np.ndarray, bool]:
    """`array_of_json`, and whether every number is finite: JSON has no others, but a type may be too small for one."""
    if not isinstance(data, list):
        raise bad_request(f"input {name!r} has no 'data'", rule="'data' must be a list, or binary_data_size given")
    if datatype == "BYTES":
        return _strings(data, shape, name), True
    if datatype in ("FP16", "BF16"):
        raise bad_request(f"input {name!r} is {datatype} in JSON", rule="it has no JSON form", remedy="Send it binary.")
    dtype = _dtype(datatype, name)
    try:
        found = np.array(data)
    except (ValueError, OverflowError, RecursionError):
        raise bad_request(f"input {name!r} has ragged or mixed 'data'") from None
    if datatype == "UINT64" and found.dtype.kind == "f":
        found = _large_integers(data, name)
    if found.size == 0:
        found = found.astype(dtype) if found.dtype.kind in "fiub" else found
    elif found.dtype.kind not in KINDS_OF[dtype.kind]:
        raise bad_request(f"input {name!r} is {datatype} and its 'data' holds other values")
    elif flags and dtype.kind != "b" and holds_flags(data):
        raise bad_request(f"input {name!r} is {datatype} and its 'data' holds true or false", rule="numbers alone")
    _check_range(found, dtype, datatype, name)
    found = _reshape(found, shape, name)
    if found.dtype == dtype:
        return found, True
    try:
        return _cast(found, dtype), True
    except FloatingPointError:
        return _cast_to_infinity(found, dtype), False


@np.errstate(over="raise")  # a decorator costs half of a `with`
def _cast(found: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return found.astype(dtype)


@np.errstate(over="ignore")  # too large becomes infinity, which is refused as such
def _cast_to_infinity(found: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return found.astype(dtype)


def is_finite(array: np.ndarray) -> bool:
    """Whether no element of a float array is NaN or infinity. In half the time of `.all()` on a small tensor."""
    return b"\0" not in np.isfinite(array).tobytes()


def nested_shape(data: Any) -> tuple[int, ...]:
    """The shape that nested lists have along their first elements."""
    shape: list[int] = []
    while isinstance(data, list) and len(shape) < DIMENSIONS_MAX:
        shape.append(len(data))
        data = data[0] if data else None
    return tuple(shape)


def array_of_bytes(data: bytes | memoryview, datatype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Little-endian row-major bytes as an array. Fixed-size types are views of `data`."""
    if datatype == "BYTES":
        return _split_strings(data, shape, name)
    if datatype == "BF16":
        half = _fixed(data, np.dtype("<u2"), shape, name, datatype)
        return (half.astype(np.uint32) << 16).view(np.float32)
    dtype = _dtype(datatype, name)
    array = _fixed(data, dtype.newbyteorder("<"), shape, name, datatype)
    if datatype == "BOOL":
        array = array.view(np.uint8) != 0  # any byte other than 0 and 1 would break numpy's booleans
    return array.astype(dtype, copy=False)


def bytes_of_array(array: np.ndarray, datatype: str) -> bytes:
    """The binary form of an array."""
    if datatype == "BYTES":
        parts: list[bytes] = []
        for item in array.reshape(-1):
            blob = item if isinstance(item, bytes) else str(item).encode()
            parts += (LENGTH.pack(len(blob)), blob)
        return b"".join(parts)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def _dtype(datatype: str, name: str) -> np.dtype:
    try:
        return NUMPY_OF[datatype]
    except KeyError:
        raise bad_request(
            f"input {name!r} has datatype {datatype[:40]!r}", rule=f"one of {', '.join((*NUMPY_OF, 'BF16'))}"
        ) from None


def _large_integers(data: list[Any], name: str) -> np.ndarray:
    """numpy takes a mix of small and very large integers for floats, which loses digits; this is the slow way."""
    found = np.array(data, dtype=object)
    if not all(isinstance(item, int) and 0 <= item < 2**64 for item in found.flat):
        raise bad_request(f"input {name!r} is UINT64 and its 'data' holds other values")
    return found.astype(np.uint64)


def _check_range(found: np.ndarray, dtype: np.dtype, datatype: str, name: str) -> None:
    if dtype.kind not in "iu" or found.size == 0 or found.dtype == dtype:
        return
    bounds = np.iinfo(dtype)
    low, high = int(found.min()), int(found.max())
    if low < bounds.min or high > bounds.max:
        raise bad_request(
            f"input {name!r} is {datatype} and its 'data' goes from {low} to {high}",
            rule=f"{datatype} holds {bounds.min} to {bounds.max}",
        )


def _reshape(found: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    if found.shape == shape:
        return found
    elements = 1
    for size in shape:
        elements *= size
    if found.size != elements or (found.ndim > 1 and found.size):
        raise bad_request(
            f"input {name!r} has shape {list(shape)} and 'data' of shape {list(found.shape)}",
            rule="'data' must be flat, or nested as the shape says",
        )
    return found.reshape(shape)


def _fixed(data: bytes | memoryview, dtype: np.dtype, shape: tuple[int, ...], name: str, datatype: str) -> np.ndarray:
    elements = 1
    for size in shape:
        elements *= size
    if len(data) != elements * dtype.itemsize:
        raise bad_request(
            f"input {name!r} has {len(data)} bytes",
            rule=f"{datatype} of shape {list(shape)} takes {elements * dtype.itemsize}",
        )
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _strings(data: list[Any], shape: tuple[int, ...], name: str) -> np.ndarray:
    flat: list[Any] = data
    for _ in range(DIMENSIONS_MAX):
        if not any(isinstance(item, list) for item in flat):
            break
        flat = [child for item in flat for child in (item if isinstance(item, list) else [item])]
    if not all(isinstance(item, str) for item in flat):
        raise bad_request(f"input {name!r} is BYTES and its 'data' holds other values than strings")
    array = np.empty(len(flat), dtype=object)
    array[:] = [item.encode("utf-8") for item in flat]
    return _reshape(array, shape, name)


def _split_strings(data: bytes | memoryview, shape: tuple[int, ...], name: str) -> np.ndarray:
    elements = 1
    for size in shape:
        elements *= size
    if elements * LENGTH.size > len(data):
        raise bad_request(f"input {name!r} has {len(data)} bytes", rule=f"{elements} strings need more")
    items: list[bytes] = []
    offset = 0
    while offset < len(data) and len(items) < elements:
        if offset + LENGTH.size > len(data):
            raise bad_request(f"input {name!r} ends inside a string's length")
        (length,) = LENGTH.unpack_from(data, offset)
        offset += LENGTH.size
        if offset + length > len(data):
            raise bad_request(f"input {name!r} has a string of {length} bytes and {len(data) - offset} bytes left")
        items.append(bytes(data[offset : offset + length]))
        offset += length
    if offset != len(data) or len(items) != elements:
        raise bad_request(f"input {name!r} holds other than {elements} strings", rule=f"its shape is {list(shape)}")
    array = np.empty(elements, dtype=object)
    array[:] = items
    return array.reshape(shape)
