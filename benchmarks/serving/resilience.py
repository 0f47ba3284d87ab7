"""What an endpoint does under more load than it can take, while it is changed, and for a long time."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.serving.load import Answers, OpenLoad
from benchmarks.serving.measure import Server, Wrk, server
from benchmarks.serving.models import cnn_graph
from cluster.runtime.ports import claim_port
from serve.protocol.codec import InferRequest, encode_request
from tests.bundles import make_bundle, mlp_graph

HERE = Path(__file__).parent
OVERLOAD = 4
OVERLOAD_S = 30.0
OVERLOAD_LAYERS = 40  # about 5 ms a row: the engine is short, not the client, the proxy or the event loop
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
KNEE_SHARE = 0.95  # of the peak: the least concurrency that reaches it is the knee
CONNECTIONS = 512
WIDTH = 64
ROLLOUT_RATE_PER_S = 300.0
PAUSE_S = 4.0
SOAK_SHARE = 0.7
WARM_UP_S = 60.0


class Case:
    """A bundle behind the endpoint on a private Ray, and the request that is sent to it."""

    def __init__(self, bundle: Path, item_shape: tuple[int, ...], *, binary: bool) -> None:
        row = np.random.default_rng(0).random((1, *item_shape), dtype=np.float32)
        self.body, length = encode_request(InferRequest({"x": row}, binary_outputs=binary), binary=binary)
        key = "Inference-Header-Content-Length" if binary else "Content-Type"
        self.headers = {key: str(length) if binary else "application/json"}
        self.bundle = bundle

    @contextmanager
    def served(self, changes: dict[str, Any]) -> Iterator[Server]:
        port = claim_port("127.0.0.1", 0)
        script = str(HERE / "servers" / "manta_ray.py")
        command = [sys.executable, script, str(self.bundle), str(port), json.dumps(changes)]
        url = f"http://127.0.0.1:{port}/m/v2/models/m/infer"
        with server(command, url, self.body, self.headers) as found:
            yield found

    def closed(self, wrk: Wrk, url: str, connections: int, seconds: float) -> dict[str, float]:
        return wrk.run(url, self.body, self.headers, connections=connections, seconds=seconds)

    def knee(self, wrk: Wrk, url: str, seconds: float) -> tuple[int, dict[int, dict[str, float]]]:
        """The least concurrency with 95 % of the peak, and the whole curve."""
        self.closed(wrk, url, 16, 2.0)
        curve = {count: self.closed(wrk, url, count, seconds) for count in CONCURRENCIES}
        peak = max(point["requests_per_s"] for point in curve.values())
        return min(c for c, point in curve.items() if point["requests_per_s"] >= KNEE_SHARE * peak), curve


def overload(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict[str, Any]:
    """Four times the peak for 30 s, with a queue bound of half the p99 at the knee."""
    shape = (3, 32, 32)
    graph = cnn_graph(shape, layers=OVERLOAD_LAYERS)
    case = Case(
        make_bundle(folder / "cnn", name="m", item_shape=shape, num_outputs=10, graph=graph), shape, binary=True
    )
    with case.served({}) as found:
        knee, curve = case.knee(wrk, found.url, options.seconds)
    knee_p99_ms, peak = curve[knee]["latency_ms_p99"], max(point["requests_per_s"] for point in curve.values())
    with case.served({"queue": {"max_wait_ms": knee_p99_ms / 2}}) as found:
        case.closed(wrk, found.url, knee, 2.0)
        load = OpenLoad(found.url, case.body, case.headers, connections=CONNECTIONS)
        answers = load.drive(OVERLOAD * peak, OVERLOAD_S)
    refused = 503
    return {
        "knee": {"connections": knee, **curve[knee]},
        "peak_requests_per_s": round(peak, 1),
        "queue_max_wait_ms": round(knee_p99_ms / 2, 2),
        "offered_per_s": round(len(answers.status) / OVERLOAD_S, 1),
        "unsent": answers.unsent,
        "answers": answers.counts(),
        "goodput_per_s": round(answers.rate_per_s(200, 2.0, OVERLOAD_S), 1),
        "goodput_to_peak": round(answers.rate_per_s(200, 2.0, OVERLOAD_S) / peak, 3),
        "accepted_p99_to_knee": round(answers.percentile_ms(200, 99, 2.0) / knee_p99_ms, 2),
        "accepted_ms_p99": round(answers.percentile_ms(200, 99, 2.0), 2),
        "refused_ms_p50": round(answers.percentile_ms(refused, 50, 2.0), 2),
        "refused_ms_p99": round(answers.percentile_ms(refused, 99, 2.0), 2),
        "refused_since_sent_ms_p99": round(answers.percentile_ms(refused, 99, 2.0, sent=True), 2),
    }


class Traffic:
    """Constant traffic from a thread of its own, and what happened between two marks."""

    def __init__(self, url: str, case: Case, rate_per_s: float, connections: int) -> None:
        self._load = OpenLoad(url, case.body, case.headers, connections=connections)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=lambda: self._load.drive(rate_per_s, 3600.0, self._stop.is_set), daemon=True
        )
        self.started_s = time.perf_counter()
        self._thread.start()

    def during(self, action: Callable[[], Any]) -> tuple[float, float]:
        """Do something amid traffic, let some pass after it; the span of both."""
        since_s = time.perf_counter() - self.started_s
        action()
        time.sleep(PAUSE_S)
        return since_s, time.perf_counter() - self.started_s

    def end(self) -> Answers:
        self._stop.set()
        self._thread.join(90)
        return self._load.answers


def rollout(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict[str, Any]:
    """A new version, more replicas, a replica killed, all replaced, fewer: at 300 requests a second."""
    graph = mlp_graph(WIDTH, 128, 10)
    bundles = [
        make_bundle(folder / name, name="m", item_shape=(WIDTH,), num_outputs=10, graph=graph) for name in ("a", "b")
    ]
    case = Case(bundles[0], (WIDTH,), binary=False)
    with case.served({}) as found:
        traffic = Traffic(found.url, case, ROLLOUT_RATE_PER_S, connections=CONNECTIONS)
        actions: dict[str, Callable[[], Any]] = {
            "before": lambda: None,
            "new version": lambda: found.tell(op="deploy", bundle=str(bundles[1])),
            "scale up to 2": lambda: found.tell(op="replicas", count=2),
            "kill -9 of one": lambda: found.tell(op="kill"),
            "replace all": lambda: found.tell(op="replace"),
            "scale down to 1": lambda: found.tell(op="replicas", count=1),
        }
        spans = {name: traffic.during(action) for name, action in actions.items()}
        answers = traffic.end()
    return {
        "rate_per_s": ROLLOUT_RATE_PER_S,
        "unsent": answers.unsent,
        "phases": {
            name: {"seconds": round(until_s - since_s, 1), "answers": answers.counts(since_s, until_s)}
            for name, (since_s, until_s) in spans.items()
        },
        "other_answers": [body.decode(errors="replace") for body in answers.bodies],
    }


def soak(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict[str, Any]:
    """Ten minutes at 70 % of the knee, every replica replaced once a minute; memory of all processes of the Ray."""
    graph = mlp_graph(WIDTH, 128, 10)
    bundle = make_bundle(folder / "m", name="m", item_shape=(WIDTH,), num_outputs=10, graph=graph)
    case = Case(bundle, (WIDTH,), binary=False)
    with case.served({}) as found:
        knee, curve = case.knee(wrk, found.url, options.seconds)
        rate_per_s = SOAK_SHARE * curve[knee]["requests_per_s"]
        traffic = Traffic(found.url, case, rate_per_s, connections=CONNECTIONS)
        memory: list[tuple[float, int, dict[str, int]]] = []
        while (now_s := time.perf_counter() - traffic.started_s) < options.soak_seconds:
            minute_s = time.perf_counter() + 60.0
            found.tell(op="replace")
            while time.perf_counter() < minute_s:
                time.sleep(5.0)
            memory.append((round(now_s), *memory_bytes(found)))
        answers = traffic.end()
    steady = [row for row in memory if row[0] >= WARM_UP_S] or memory
    whole = [sum(row[2].values()) for row in steady]
    return {
        "knee": {"connections": knee, **curve[knee]},
        "rate_per_s": round(rate_per_s, 1),
        "seconds": options.soak_seconds,
        "unsent": answers.unsent,
        "answers": answers.counts(),
        "latency_ms_p50": round(answers.percentile_ms(200, 50), 2),
        "latency_ms_p99": round(answers.percentile_ms(200, 99), 2),
        "replica_mib": [round(row[1] / 2**20, 1) for row in memory],
        "whole_ray_mib": [round(sum(row[2].values()) / 2**20) for row in memory],
        "first_and_last_mib": {
            kind: [round(row[2].get(kind, 0) / 2**20, 1) for row in (steady[0], steady[-1])]
            for kind in sorted({*steady[0][2], *steady[-1][2]})
        },
        "replica_growth": round(steady[-1][1] / steady[0][1] - 1, 4),
        "whole_ray_growth": round(whole[-1] / whole[0] - 1, 4),
        "other_answers": [body.decode(errors="replace") for body in answers.bodies],
    }


def memory_bytes(found: Server) -> tuple[int, dict[str, int]]:
    """Memory of the replica as it says itself, and of each kind of process below the server's (USS)."""
    with httpx.Client(trust_env=False, timeout=30) as http:
        replica = int(http.get(found.url.partition("/v2")[0] + "/stats").json()[0]["process"]["memory_bytes"])
    kinds: dict[str, int] = {}
    for process in [root := psutil.Process(found.process.pid), *root.children(recursive=True)]:
        try:
            words = [Path(word).name for word in process.cmdline() if word and not word.startswith("-")]
            kind = next((word for word in words if not word.startswith("python")), process.name())
            kinds[kind] = kinds.get(kind, 0) + int(process.memory_full_info().uss)
        except psutil.Error:
            continue
    return replica, kinds
