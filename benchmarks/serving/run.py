"""Serving benchmarks: requests per second of the same model behind different servers, in alternating pairs.

    python -m benchmarks.serving.run --wrk wrk [--peers VENV] [--cases json64 images cnn overload] [--seconds 4]

Client and servers share the machine. Every case starts its servers once, then measures them in turn, round after
round, and reports the median of the rounds' ratios, because absolute numbers move with whatever else runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime

from benchmarks.serving.models import cnn_graph
from cluster.atomic import write_json
from serve.codec import InferRequest, encode_request
from serve.deployments.ports import claim_port
from tests.bundles import make_bundle, mlp_graph

HERE = Path(__file__).parent
START_TIMEOUT_S = 120
CLASSES = 10


@contextmanager
def server(command: list[str], url: str, body: bytes, headers: dict[str, str]) -> Iterator[str]:
    """Start a server and wait until it answers the case's own request; yields the URL."""
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not answers(url, body, headers):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} did not answer: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind


def answers(url: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        return httpx.post(url, content=body, headers=headers, timeout=10, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


class Wrk:
    """Closed-loop load by wrk."""

    def __init__(self, path: str, folder: Path) -> None:
        self.path, self.folder = path, folder

    def run(self, url: str, body: bytes, headers: dict[str, str], *, connections: int, seconds: float) -> dict:
        """Requests per second, latency percentiles in ms, and how many answers were not 2xx."""
        name = self.folder / "body"
        name.write_bytes(body)
        lines = [f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items()]
        script = self.folder / "post.lua"
        script.write_text(
            f'local f = io.open("{name}", "rb")\nwrk.body = f:read("*all")\nf:close()\nwrk.method = "POST"\n'
            + "\n".join(lines)
            + "\n"
        )
        command = [self.path, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script), url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
        return parse(done.stdout)


def parse(text: str) -> dict[str, float]:
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
    found = {"requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])}
    for share, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE):
        found[f"latency_ms_p{share}"] = float(value) * scale[unit]
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    found["not_2xx"] = int(errors[1]) if errors else 0
    return found


def compare(wrk: Wrk, targets: dict[str, tuple], *, connections: int, seconds: float, rounds: int) -> dict:
    """Measure each target in turn, `rounds` times; medians, and the ratio of each to the first in the same round."""
    rows: dict[str, list[dict]] = {name: [] for name in targets}
    for url, body, headers in targets.values():
        wrk.run(url, body, headers, connections=connections, seconds=1)  # warm-up
    for _ in range(rounds):
        for name, (url, body, headers) in targets.items():
            rows[name].append(wrk.run(url, body, headers, connections=connections, seconds=seconds))
    first = next(iter(rows))
    result = {}
    for name, measured in rows.items():
        ratios = [m["requests_per_s"] / b["requests_per_s"] for m, b in zip(measured, rows[first], strict=True)]
        result[name] = {
            key: round(statistics.median(m[key] for m in measured), 3) for key in measured[0] if key in measured[-1]
        }
        result[name][f"ratio_to_{first}"] = round(statistics.median(ratios), 3)
        result[name]["ratios"] = [round(ratio, 3) for ratio in ratios]
    return result


def json64(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict:
    """One row of 64 floats in JSON, an MLP, 16 connections, one replica."""
    bundle = make_bundle(
        folder / "mlp", name="m", item_shape=(64,), num_outputs=CLASSES, graph=mlp_graph(64, 128, CLASSES)
    )
    model = str(bundle / "model.onnx")
    row = np.random.default_rng(0).random((1, 64), dtype=np.float32)
    body, _ = encode_request(InferRequest({"x": row}))
    headers = {"Content-Type": "application/json"}
    commands = {
        "bare": (sys.executable, "bare.py", model, ""),
        "manta_process": (sys.executable, None, str(bundle), ""),
        "manta_ray": (sys.executable, "manta_ray.py", str(bundle), "/m"),
        "ray_default": (sys.executable, "ray_default.py", model, ""),
    }
    if options.peers:
        commands["litserve"] = (str(options.peers / "bin" / "python"), "litserve_server.py", model, "")
        commands["mlserver"] = (str(options.peers / "bin" / "mlserver"), "mlserver", model, "")
    if options.servers:
        commands = {name: commands[name] for name in options.servers}
    with ExitStack() as stack:
        targets = {}
        for name, (python, script, argument, prefix) in commands.items():
            port = claim_port("127.0.0.1", 0)
            url = f"http://127.0.0.1:{port}{prefix}/v2/models/m/infer"
            if script is None:
                command = [python, "-m", "serve", argument, "--name", "m", "--port", str(port)]
            elif script == "mlserver":
                command = [python, "start", str(mlserver_folder(folder / "mlserver", argument, port))]
            else:
                command = [python, str(HERE / "servers" / script), argument, str(port)]
            stack.enter_context(server(command, url, body, headers))
            targets[name] = (url, body, headers)
        return compare(wrk, targets, connections=16, seconds=options.seconds, rounds=options.rounds)


def mlserver_folder(folder: Path, model: str, port: int) -> Path:
    folder.mkdir()
    ports = {"http_port": port, "grpc_port": claim_port("127.0.0.1", 0), "metrics_port": claim_port("127.0.0.1", 0)}
    settings = {"parallel_workers": 0, "debug": False, "host": "127.0.0.1", **ports}
    write_json(folder / "settings.json", settings)
    write_json(
        folder / "model-settings.json",
        {"name": "m", "implementation": "mlserver_model.Model", "parameters": {"uri": model, "version": "1"}},
    )
    (folder / "mlserver_model.py").write_text((HERE / "servers" / "mlserver_model.py").read_text())
    return folder


def images(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict:
    """One image 3x224x224 as JSON and as a binary tensor, the same endpoint."""
    bundle = make_bundle(folder / "images", name="m", item_shape=(3, 224, 224), num_outputs=CLASSES)
    image = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    text, _ = encode_request(InferRequest({"x": image}))
    blob, length = encode_request(InferRequest({"x": image}, binary_outputs=True), binary=True)
    port = claim_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/m/v2/models/m/infer"
    command = [sys.executable, str(HERE / "servers" / "manta_ray.py"), str(bundle), str(port)]
    headers = {"Content-Type": "application/json"}
    with server(command, url, text, headers):
        targets = {
            "json": (url, text, headers),
            "binary": (url, blob, {"Inference-Header-Content-Length": str(length)}),
        }
        return compare(wrk, targets, connections=8, seconds=options.seconds, rounds=options.rounds)


def cnn(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict:
    """A CNN of some 0.35 ms a row, batching on, 64 connections, binary, against ONNX Runtime in this process."""
    shape = (3, 32, 32)
    bundle = make_bundle(folder / "cnn", name="m", item_shape=shape, num_outputs=CLASSES, graph=cnn_graph(shape))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), settings, providers=["CPUExecutionProvider"])
    row = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    body, length = encode_request(InferRequest({"x": row}, binary_outputs=True), binary=True)
    headers = {"Inference-Header-Content-Length": str(length)}
    port = claim_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/m/v2/models/m/infer"
    command = [sys.executable, str(HERE / "servers" / "manta_ray.py"), str(bundle), str(port)]
    rounds = []
    with server(command, url, body, headers):
        wrk.run(url, body, headers, connections=64, seconds=2)
        for _ in range(options.rounds):
            best = max(in_process(session, shape, size, options.seconds / 6) for size in (1, 4, 8, 16, 32, 64))
            rounds.append((best, wrk.run(url, body, headers, connections=64, seconds=options.seconds)))
    ratios = [measured["requests_per_s"] / best for best, measured in rounds]
    return {
        "in_process_best": {"rows_per_s": round(statistics.median(best for best, _ in rounds), 1)},
        "manta_ray": {
            "requests_per_s": round(statistics.median(m["requests_per_s"] for _, m in rounds), 1),
            "ratio_to_in_process": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        },
    }


def in_process(session: Any, shape: tuple[int, ...], size: int, seconds: float) -> float:
    """Rows per second of the session alone."""
    x = np.random.default_rng(0).random((size, *shape), dtype=np.float32)
    session.run(None, {"x": x})
    rows, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        session.run(None, {"x": x})
        rows += size
    return rows / elapsed


CASES = {"json64": json64, "images": images, "cnn": cnn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wrk", default="wrk")
    parser.add_argument("--servers", nargs="+", help="of case json64, bare first; all when absent")
    parser.add_argument("--peers", type=Path, help="virtual environment with litserve and mlserver")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    options = parser.parse_args()
    results = json.loads(options.out.read_text())["cases"] if options.out.exists() else {}
    for name in options.cases:
        with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
            results[name] = CASES[name](options, Wrk(options.wrk, Path(folder)), Path(folder))
        print(name, json.dumps(results[name], indent=2))
    packages = ("ray", "onnxruntime", "fastapi", "uvicorn", "numpy", "orjson")
    write_json(
        options.out,
        {
            "cases": results,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "measured_unix_s": round(time.time()),
        },
    )


if __name__ == "__main__":
    main()
