"""`python -m serve` with the torch module on the device, asked over loopback by many clients for a bounded time."""

from __future__ import annotations

import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.gpu.findings import Context, Findings
from benchmarks.gpu.plan import ROOT
from benchmarks.gpu.steps.served import CLOSE, ROWS, torch_bundle

CLIENTS, LOAD_S, START_S = 16, 6.0, 120.0
READY = re.compile(r"answers at http://([\d.]+):(\d+)")
PATH = "/v2/models/gpu"


def run(context: Context, findings: Findings) -> None:
    folder, rows, logits = torch_bundle(context)
    command = [sys.executable, "-m", "serve", str(folder), "--device", context.device, "--port", "0"]
    started = time.monotonic()
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        host, port = _ready(server, min(START_S, context.left_s()))
        findings.put("start", seconds=round(time.monotonic() - started, 1))
        seconds = 0.5 if context.dry else min(LOAD_S, max(1.0, context.left_s() - 3))
        findings.put("load", **_load(host, port, rows, logits, 4 if context.dry else CLIENTS, seconds))
        findings.put("statistics", **_statistics(host, port))
    finally:
        server.terminate()
        try:
            findings.put("stop", exit_code=server.wait(30))
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            findings.put("stop", ok=False, error="it did not end within 30 s of SIGTERM")


def _ready(server: subprocess.Popen[str], seconds: float) -> tuple[str, int]:
    """Host and port, when it says so. Raises with what it said where it ends or takes too long."""
    lines: list[str] = []
    said = threading.Event()

    def read() -> None:
        for line in server.stderr or ():
            lines.append(line)
            if READY.search(line):
                said.set()
        said.set()

    threading.Thread(target=read, daemon=True).start()
    said.wait(seconds)
    found = READY.search("".join(lines))
    if found is None:
        raise RuntimeError("the endpoint is not ready:\n" + "".join(lines[-8:]))
    return found[1], int(found[2])


def _load(host: str, port: int, rows: np.ndarray, logits: np.ndarray, clients: int, seconds: float) -> dict[str, Any]:
    until, largest = time.monotonic() + seconds, float(np.abs(logits).max())

    def client(number: int) -> tuple[list[float], float, list[str]]:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        took: list[float] = []
        bad: list[str] = []
        worst, turn = 0.0, 0
        while time.monotonic() < until:
            row = (number + 17 * turn) % ROWS
            turn += 1
            tensor = {
                "name": "x",
                "datatype": "FP32",
                "shape": [1, *rows.shape[1:]],
                "data": rows[row].ravel().tolist(),
            }
            body, began = json.dumps({"inputs": [tensor]}), time.perf_counter()
            connection.request("POST", f"{PATH}/infer", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            took.append(time.perf_counter() - began)
            if answer.status != 200:
                bad.append(f"{answer.status} {content[:200]!r}")
                continue
            got = np.asarray(json.loads(content)["outputs"][0]["data"])
            worst = max(worst, float(np.abs(got - logits[row]).max()) / largest)
        connection.close()
        return took, worst, bad

    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(client, range(clients)))
    took = sorted(one for part in parts for one in part[0])
    worst, bad = max(part[1] for part in parts), [text for part in parts for text in part[2]]
    return {
        "ok": bool(took) and not bad and worst <= CLOSE,
        "refused": len(bad),
        "first_refusal": bad[:1],
        "worst": worst,
        "requests_per_s": round(len(took) / seconds, 1),
        "p50_ms": round(statistics.median(took) * 1e3, 2),
        "p99_ms": round(took[int(0.99 * (len(took) - 1))] * 1e3, 2),
    }


def _statistics(host: str, port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", f"{PATH}/stats")
    (model,) = json.loads(connection.getresponse().read())["model_stats"]
    calls = max(1, model["execution_count"])
    sizes = {str(size["batch_size"]): size["compute_infer"]["count"] for size in model["batch_stats"]}
    return {
        "rows": model["inference_count"],
        "rows_per_call": round(model["inference_count"] / calls, 2),
        "calls": sizes,
    }
