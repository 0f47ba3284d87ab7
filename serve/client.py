"""A small client of the protocol, for the pipeline's predict stage, the commands and the tests.

Not covered: gRPC (use tritonclient), retries of requests that may have run.
"""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np

from cluster.errors import EndpointError
from cluster.runtime.private.haproxy_config import LOOK_HEADER
from serve.access import TOKEN_VARIABLE
from serve.protocol.codec import InferAnswer, InferRequest, decode_answer, encode_request

HEADER_LENGTH = "Inference-Header-Content-Length"


class EndpointClient:
    """One endpoint. Keeps its connection; close it, or use it as a context."""

    def __init__(
        self, url: str, model: str, *, token: str = "", timeout_s: float = 60.0, only_look: bool = False
    ) -> None:
        """`only_look`: a question is refused where no replica is up, instead of starting one."""
        self.url = url.rstrip("/")
        self.model = model
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {LOOK_HEADER: "1"} if only_look else {}
        # trust_env=False: a proxy of the environment must not stand between this host and its own endpoint
        self._http = httpx.Client(timeout=timeout_s, headers=headers, trust_env=False)

    def __enter__(self) -> EndpointClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def infer(self, inputs: dict[str, np.ndarray], *, version: str = "", binary: bool = True) -> InferAnswer:
        """Send one request in the protocol. Raises EndpointError for any answer but 200."""
        body, length = encode_request(InferRequest(inputs, binary_outputs=binary), binary=binary)
        headers = {HEADER_LENGTH: str(length)} if length is not None else {"Content-Type": "application/json"}
        at_version = f"/versions/{version}" if version else ""
        response = self._send("POST", f"/v2/models/{self.model}{at_version}/infer", content=body, headers=headers)
        found = response.headers.get(HEADER_LENGTH)
        return decode_answer(response.content, int(found) if found is not None else None)

    def predict(self, rows: list[Any], *, version: str = "") -> dict[str, Any]:
        """Send raw rows to /predict."""
        found: dict[str, Any] = self._send("POST", "/predict", json={"rows": rows, "version": version}).json()
        return found

    def predict_image(self, data: bytes, *, version: str = "") -> dict[str, Any]:
        """Send an image file to /predict."""
        headers = {"Content-Type": "application/octet-stream"}  # the endpoint finds the format in the bytes
        options = {"content": data, "params": {"version": version}, "headers": headers}
        found: dict[str, Any] = self._send("POST", "/predict/image", **options).json()
        return found

    def get(self, path: str) -> Any:
        """GET a JSON path below the endpoint's URL."""
        return self._send("GET", path).json()

    def post(self, path: str, value: Any = None) -> Any:
        """POST JSON; returns the JSON of the answer, or None for an empty one."""
        response = self._send("POST", path, json=value)
        return response.json() if response.content else None

    def is_ready(self) -> bool:
        """The endpoint answers and its default version is ready."""
        try:
            return self._http.get(f"{self.url}/v2/models/{self.model}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def serves(self, version: str) -> bool:
        """The version is among those that the endpoint has loaded. Raises EndpointError for a token it refuses."""
        try:
            response = self._http.get(f"{self.url}/v2/models/{self.model}/versions/{version}/ready")
        except httpx.TransportError:
            return False
        if response.status_code == 401:
            raise self._refusal(response, f"Cannot ask endpoint '{self.model}' at {self.url}", response.url.path)
        return response.status_code == 200

    def index(self) -> list[dict[str, str]]:
        """Versions and their states; empty while nothing answers."""
        try:
            response = self._http.post(f"{self.url}/v2/repository/index")
        except httpx.TransportError:
            return []
        return list(response.json()) if response.status_code == 200 else []

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        attempted = f"Cannot ask endpoint '{self.model}' at {self.url}"
        try:
            response = self._http.request(method, f"{self.url}{path}", **options)
        except httpx.TransportError as error:
            raise EndpointError(
                attempted,
                found=f"{type(error).__name__}: {error}",
                remedy="See which endpoints there are with 'manta endpoints'.",
            ) from None
        if response.status_code != 200:
            raise self._refusal(response, attempted, f"{method} {path}")
        return response

    @staticmethod
    def _refusal(response: httpx.Response, attempted: str, what: str) -> EndpointError:
        return EndpointError(
            attempted,
            found=f"{what} answered {response.status_code}: {_reason(response)}",
            remedy=f"Give a token with --token-file or {TOKEN_VARIABLE}." if response.status_code == 401 else "",
            details={"status": response.status_code},
        )


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
