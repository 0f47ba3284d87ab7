"""NaN and infinity at real servers of a float and of a quantized graph: both refuse them, unless one lets them in."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from tests.bundles import linear_graph, make_bundle
from tests.contract.protocol_tests.conftest import server_process

INFER = "/v2/models/digits/infer"
BAD = (np.nan, np.inf, -np.inf)


def quantized_graph(folder: Path) -> onnx.ModelProto:
    """Dynamic INT8, whose scales come from the rows: it answers NaN with numbers."""
    onnx.save(linear_graph((4,), 3), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)
    return onnx.load(folder / "int8.onnx")


def binary(http: httpx.Client, rows: list[list[float]]) -> httpx.Response:
    array = np.array(rows, np.float32)
    tensor = {"name": "x", "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    return http.post(INFER, content=head + array.tobytes(), headers=headers)


@pytest.mark.parametrize("kind", ["float", "quantized"])
def test_every_form_of_a_non_finite_number_is_400_whatever_the_graph(tmp_path: Path, kind: str) -> None:
    graph = quantized_graph(tmp_path) if kind == "quantized" else None
    bundle = make_bundle(tmp_path / "bundle", item_shape=(4,), num_outputs=3, graph=graph)
    with server_process(bundle) as address, httpx.Client(base_url=f"http://{address}", trust_env=False) as http:
        found = [binary(http, [[1, 2, 3, 4], [1, bad, 3, 4]]) for bad in BAD]
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 1e39]}
        found.append(http.post(INFER, json={"inputs": [tensor]}))
        found.append(http.post("/predict", json={"rows": [[1, 2, 3, 1e39]]}))
        for answer in found:
            assert answer.status_code == 400, answer.text
            assert "input 'x' holds NaN or infinity" in answer.json()["error"]
        assert binary(http, [[1, 2, 3, 4]]).status_code == 200
    with (
        server_process(bundle, "--allow-non-finite") as address,
        httpx.Client(base_url=f"http://{address}", trust_env=False) as http,
    ):
        answer = binary(http, [[1, np.nan, 3, 4]])
        if kind == "float":
            assert (answer.status_code, "output 'logits' holds NaN or infinity" in answer.text) == (500, True)
        else:
            assert answer.status_code in (200, 500)  # what the graph makes of it is its own
        assert binary(http, [[1, 2, 3, 4]]).status_code == 200
