"""An endpoint on Ray Serve: it answers through its public port, with the right rows, and in the protocol's words."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np

from cluster.bundle import open_bundle
from serve.client import EndpointClient


def test_endpoint_gives_the_bundles_sample_outputs_in_both_wire_forms(
    endpoint: EndpointClient, digits_bundle: Path
) -> None:
    sample = open_bundle(digits_bundle).sample()
    for binary in (True, False):
        answer = endpoint.infer({"x": sample["inputs/x"]}, binary=binary)
        np.testing.assert_allclose(answer.outputs["logits"], sample["outputs/fp32/logits"], rtol=1e-4, atol=1e-5)


def test_every_error_is_a_json_object_through_the_proxy(endpoint: EndpointClient) -> None:
    for method, path, status in (
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("DELETE", "/v2/models/digits/infer", 405),
        ("POST", "/v2/models/digits/infer", 400),
        ("POST", "/predict", 400),
        ("GET", "/nothing", 404),
    ):
        response = httpx.request(method, f"{endpoint.url}{path}", content=b"{", trust_env=False)
        assert (response.status_code, list(response.json())) == (status, ["error"]), path


def test_raw_rows_come_back_as_labels_with_probabilities(endpoint: EndpointClient, digits_bundle: Path) -> None:
    sample = open_bundle(digits_bundle).sample()
    answer = endpoint.predict(sample["inputs/x"].tolist())
    labels = [row["label"] for row in answer["predictions"]]
    assert labels == [str(i) for i in sample["outputs/fp32/logits"].argmax(axis=1)]
    for row in answer["predictions"]:
        assert abs(sum(row["probabilities"].values()) - 1) < 1e-4


def test_infer_takes_the_short_way_and_all_else_ray_serves_way(endpoint: EndpointClient, digits_bundle: Path) -> None:
    """Ray Serve's wrapping stamps a request id on what passes it."""
    body = {"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]}
    infer = httpx.post(f"{endpoint.url}/v2/models/digits/infer", json=body, trust_env=False)
    metadata = httpx.get(f"{endpoint.url}/v2/models/digits", trust_env=False)
    assert (infer.status_code, "x-request-id" in infer.headers) == (200, False)
    assert (metadata.status_code, "x-request-id" in metadata.headers) == (200, True)
