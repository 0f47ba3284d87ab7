"""The codec: what goes in comes out, and nothing but ProtocolError leaves it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cluster.bundle.signature import NUMPY_OF, TensorSignature, TensorSpec
from cluster.errors import ProtocolError
from serve.protocol.codec import InferAnswer, InferRequest, decode, decode_answer, encode, encode_request
from serve.protocol.errors import status_of
from serve.protocol.limits import Limits

LIMITS = Limits()
SIGNATURE = TensorSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
)
FIXED = sorted(set(NUMPY_OF) - {"BYTES"})


def arrays(datatype: str) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    if datatype == "BYTES":
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
        return shapes.flatmap(
            lambda shape: st.lists(text, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
                lambda items: _objects([item.encode() for item in items], shape)
            )
        )
    dtype = NUMPY_OF[datatype]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    return hnp.arrays(dtype, shapes, elements=elements)


def _objects(items: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(NUMPY_OF)), binary=st.booleans())
def test_a_request_comes_back_as_it_was_sent(data: st.DataObject, datatype: str, binary: bool) -> None:
    if datatype == "FP16":
        binary = True  # it has no JSON form
    array = data.draw(arrays(datatype))
    body, length = encode_request(InferRequest({"x": array}, id="q", priority=1, timeout_us=5), binary=binary)
    found = decode(body, None if length is None else str(length), SIGNATURE, LIMITS)
    np.testing.assert_array_equal(found.inputs["x"], array)
    assert found.inputs["x"].dtype == array.dtype
    assert (found.id, found.priority, found.timeout_us) == ("q", 1, 5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), datatype=st.sampled_from(sorted(NUMPY_OF)), binary=st.booleans())
def test_an_answer_comes_back_as_it_was_given(data: st.DataObject, datatype: str, binary: bool) -> None:
    binary = binary or datatype == "FP16"
    array = data.draw(arrays(datatype))
    body, length = encode(InferAnswer("m", "1", {"y": array}, "q"), InferRequest({}, binary_outputs=binary))
    assert (length is not None) == binary
    answer = decode_answer(body, length)
    np.testing.assert_array_equal(answer.outputs["y"], array)
    assert (answer.model, answer.version, answer.id) == ("m", "1", "q")


def only_a_protocol_error(body: bytes, header: str | None) -> None:
    """Decode; an error of another class leaves as it is and fails the test."""
    status = 400
    try:
        decode(body, header, SIGNATURE, LIMITS)
    except ProtocolError as error:
        status = status_of(error)
    assert status in (400, 413, 501)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), header=st.none() | st.text(max_size=12) | st.integers(-5, 250).map(str))
def test_no_bytes_raise_anything_but_a_protocol_error(body: bytes, header: str | None) -> None:
    only_a_protocol_error(body, header)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "name": JSON,
        "shape": JSON | st.lists(st.integers(0, 3), max_size=3),
        "data": JSON,
        "datatype": JSON | st.sampled_from([*NUMPY_OF, "BF16"]),
        "parameters": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(
    inputs=JSON | st.lists(ENTRY, max_size=2), outputs=JSON | st.lists(ENTRY, max_size=2), parameters=JSON, name=JSON
)
def test_no_json_raises_anything_but_a_protocol_error(inputs, outputs, parameters, name) -> None:
    text = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": parameters, "id": name})
    only_a_protocol_error(text.encode("utf-8", "replace"), None)


def request(**changes: object) -> bytes:
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], **changes}
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not None}]}).encode()


BINARY = {"data": None, "parameters": {"binary_data_size": 12}}
BAD = {
    "header is no integer": (request(), "abc", "integer"),
    "header is negative": (request(), "-1", "0..2147483647"),
    "header is past int32": (request(), str(2**31), "0..2147483647"),
    "header is past int64": (request(), "9" * 30, "0..2147483647"),
    "header is past the body": (request(), "1000", "the body has"),
    "binary size is past the body": (request(**BINARY) + b"1234", None, "expecting 8 additional bytes"),
    "bytes are left": (request(**BINARY) + b"1" * 16, None, "unexpected additional input data: 4 bytes"),
    "data and binary": (request(parameters={"binary_data_size": 12}) + b"1" * 12, None, "both"),
    "too few values": (request(data=[1, 2]), None, "nested as the shape says"),
    "wrong nesting": (request(data=[[1], [2], [3]]), None, "nested as the shape says"),
    "ragged": (request(data=[[1, 2], [3]]), None, "ragged"),
    "negative size": (request(shape=[-1, 3]), None, "0 or more"),
    "size overflows": (request(shape=[2**4, 2**60 + 2]), None, "elements"),
    "strings for numbers": (request(data=["1", "2", "3"]), None, "other values"),
    "flags for numbers": (request(data=[True, False, True]), None, "other values"),
    "nulls": (request(data=[None, None, None]), None, "other values"),
    "fractions for integers": (request(datatype="INT32", data=[1.5, 2, 3]), None, "other values"),
    "integer out of range": (request(datatype="INT8", data=[1, 2, 300]), None, "-128 to 127"),
    "negative for unsigned": (request(datatype="UINT64", data=[-1, 2, 3]), None, "UINT64 holds"),
    "unknown datatype": (request(datatype="FP8"), None, "datatype"),
    "half floats in JSON": (request(datatype="FP16"), None, "no JSON form"),
    "NaN in JSON": (b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[NaN]}]}', None, "not JSON"),
    "NUL in a name": (request(name="x\0y"), None, "NUL"),
    "no inputs": (b'{"inputs":[]}', None, "non-empty list"),
    "a list": (b"[]", None, "must be an object"),
    "empty body": (b"", None, "not JSON"),
    "depth bomb": (b'{"inputs":' + b"[" * 100_000, None, "not JSON"),
    "deep unknown key": (b'{"extra":' + b"[" * 200 + b"]" * 200 + b"}", None, "nested too deeply"),
    "shared memory": (request(parameters={"shared_memory_region": "r"}), None, "shared memory"),
    "object as parameter": (request(parameters={"a": {}}), None, "values are strings, numbers, flags"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_request_names_its_fault(case: str) -> None:
    body, header, words = BAD[case]
    if header is None and b"binary_data_size" in body:
        header = str(body.index(b"}]}") + 3)
    with pytest.raises(ProtocolError) as caught:
        decode(body, header, SIGNATURE, LIMITS)
    assert words in str(caught.value)


def test_large_unsigned_integers_keep_every_digit_beside_small_ones() -> None:
    found = decode(request(datatype="UINT64", data=[0, 1, 2**64 - 1]), None, SIGNATURE, LIMITS)
    assert found.inputs["x"].tolist() == [[0, 1, 2**64 - 1]]
    with pytest.raises(ProtocolError, match="other values"):
        decode(request(datatype="UINT64", data=[0.5, 1, 2]), None, SIGNATURE, LIMITS)


def test_duplicate_names_are_refused() -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    for raw in ({"inputs": [tensor, tensor]}, {"inputs": [tensor], "outputs": [{"name": "y"}, {"name": "y"}]}):
        with pytest.raises(ProtocolError, match="twice"):
            decode(json.dumps(raw).encode(), None, SIGNATURE, LIMITS)


def test_a_shape_alone_takes_no_memory() -> None:
    body = request(shape=[2**25, 3], data=[])
    with pytest.raises(ProtocolError) as caught:
        decode(body, None, SIGNATURE, LIMITS)
    assert status_of(caught.value) == 413


@pytest.mark.parametrize("form", ["nested", "flat"])
def test_data_may_be_nested_or_flat(form: str) -> None:
    data = [[1, 2, 3], [4, 5, 6]] if form == "nested" else [1, 2, 3, 4, 5, 6]
    found = decode(request(shape=[2, 3], data=data), None, SIGNATURE, LIMITS)
    np.testing.assert_array_equal(found.inputs["x"], np.array([[1, 2, 3], [4, 5, 6]], np.float32))


def test_raw_binary_takes_its_shape_from_the_model() -> None:
    found = decode(np.arange(3, dtype=np.float32).tobytes(), "0", SIGNATURE, LIMITS)
    assert found.inputs["x"].shape == (1, 3)
    assert found.binary_outputs
    with pytest.raises(ProtocolError, match="takes 12"):
        decode(b"1" * 16, "0", SIGNATURE, LIMITS)


def test_raw_binary_fills_one_free_axis_and_refuses_two() -> None:
    one = TensorSignature(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2, -1)),), outputs=SIGNATURE.outputs)
    assert decode(b"1" * 32, "0", one, LIMITS).inputs["x"].shape == (1, 2, 4)
    two = TensorSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1, -1)),), outputs=SIGNATURE.outputs
    )
    with pytest.raises(ProtocolError, match="at most one axis"):
        decode(b"1" * 32, "0", two, LIMITS)
    several = TensorSignature(inputs=(*SIGNATURE.inputs, *two.inputs), outputs=SIGNATURE.outputs)
    with pytest.raises(ProtocolError, match="one input"):
        decode(b"1" * 32, "0", several, LIMITS)


def test_bfloat16_on_the_wire_is_float32_in_numpy() -> None:
    values = np.array([[1.5, -2.0, 0.25]], np.float32)
    half = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    head = request(datatype="BF16", data=None, parameters={"binary_data_size": len(half)})
    found = decode(head + half, str(len(head)), SIGNATURE, LIMITS)
    np.testing.assert_array_equal(found.inputs["x"], values)


def test_an_output_may_choose_its_own_form() -> None:
    raw = json.loads(request())
    raw["parameters"] = {"binary_data_output": True}
    raw["outputs"] = [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}]
    found = decode(json.dumps(raw).encode(), None, SIGNATURE, LIMITS)
    outputs = {"a": np.ones((1, 2), np.float32), "b": np.zeros((1, 0), np.float32)}
    body, length = encode(InferAnswer("m", "1", outputs), found)
    assert length is not None
    tensors = json.loads(body[:length])["outputs"]
    assert tensors[0]["data"] == [1.0, 1.0]
    assert tensors[1]["parameters"] == {"binary_data_size": 0}


def test_a_json_answer_never_names_a_binary_size() -> None:
    body, length = encode(InferAnswer("m", "1", {"y": np.zeros((1, 2), np.float32)}), InferRequest({}))
    assert length is None
    assert b"binary_data_size" not in body


def test_bytes_that_are_not_text_must_be_asked_for_in_binary() -> None:
    answer = InferAnswer("m", "1", {"y": _objects([b"\xff"], (1,))})
    with pytest.raises(ProtocolError, match="UTF-8"):
        encode(answer, InferRequest({}))
    body, length = encode(answer, InferRequest({}, binary_outputs=True))
    assert decode_answer(body, length).outputs["y"][0] == b"\xff"


@pytest.mark.parametrize(
    ("value", "binary", "is_known"), [(1.5, False, True), (1e39, False, False), (1.5, True, False)]
)
def test_numbers_of_json_are_known_to_be_finite_but_for_those_past_their_type(
    value: float, binary: bool, is_known: bool
) -> None:
    array = np.array([[value, 2.0]])
    body, length = encode_request(InferRequest({"x": array}), binary=binary)
    if not binary:
        body = body.replace(b"FP64", b"FP32")
    found = decode(body, str(length) if binary else None, SIGNATURE, Limits())
    assert found.is_finite == is_known
    assert bool(np.isfinite(found.inputs["x"]).all()) == (value < 1e38)
