"""An endpoint none of whose replicas can start: whoever asks is answered, and the operator is told why."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest

from cluster.runtime.private.haproxy_config import ProxyLimits
from serve.deployments.commands import _endpoint_row
from serve.deployments.endpoint import deploy, undeploy
from tests.bundles import make_bundle
from tests.integration.serve_tests.conftest import one_version
from tests.integration.serve_tests.test_faults import eventually, ours

TOKEN = "broken-token-0123456789"


@pytest.mark.slow  # a request waits as long as a replica may take to start
def test_every_request_is_503_in_time_and_the_reason_is_told(ray_local: str, endpoint: object, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    bundle = make_bundle(tmp_path / "bundle", name="broken")
    found = deploy(one_version("broken", bundle, token_file=str(tmp_path / "tokens")))

    def replicas() -> list[psutil.Process]:
        return [process for process in ours("ServeReplica") if "broken" in "".join(process.cmdline())]

    def row() -> dict[str, object]:
        return _endpoint_row(SimpleNamespace(address=ray_local), "broken", found.url, TOKEN)  # type: ignore[arg-type]

    try:
        eventually(lambda: row()["state"] == "READY")
        (tmp_path / "tokens").unlink()
        for process in replicas():
            os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: row()["state"] == "FAILED" and "tokens" in str(row()["reason"]))
        data = np.zeros(64).tolist()
        body = {"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": data}]}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        started = time.monotonic()
        with httpx.Client(timeout=60, trust_env=False, headers=headers) as client:
            answers = [
                client.get(f"{found.url}/v2/health/ready"),
                client.post(f"{found.url}/v2/models/broken/infer", json=body),
            ]
        assert time.monotonic() - started < 2 * (ProxyLimits().replica_wait_s + 2)
        for answer in answers:
            assert (answer.status_code, answer.headers["retry-after"], list(answer.json())) == (503, "1", ["error"])
        (tmp_path / "tokens").write_text(f"{TOKEN}\n")
        eventually(lambda: row()["state"] == "READY")
    finally:
        undeploy("broken")
