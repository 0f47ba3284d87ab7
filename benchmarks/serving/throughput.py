"""Requests per second of the same model behind different servers."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.serving.measure import Wrk, compare, server
from benchmarks.serving.models import cnn_graph
from cluster.atomic import write_json
from cluster.runtime.ports import claim_port
from serve.protocol.codec import InferRequest, encode_request
from tests.bundles import make_bundle, mlp_graph

HERE = Path(__file__).parent
CLASSES = 10


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
        found = compare(wrk, targets, connections=16, seconds=options.seconds, rounds=options.rounds)
    if ours := found.get("manta_ray"):
        for row in found.values():
            against = [mine / theirs for mine, theirs in zip(ours["ratios"], row["ratios"], strict=True)]
            row["manta_ray_against_it"] = round(statistics.median(against), 3)
    return found


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
