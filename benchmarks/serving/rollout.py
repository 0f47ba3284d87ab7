"""What clients of an endpoint with one replica notice of roll-outs that fail, and of many that do not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.load import Answers
from benchmarks.serving.measure import Wrk
from benchmarks.serving.resilience import Case, Traffic, memory_bytes
from tests.bundles import make_bundle
from tests.integration.serve_tests.bad_bundles import BAD

SHAPE = (1, 8, 8)
CONNECTIONS = 16
RATE_PER_S = 200.0
HANG_S = 10.0  # until a bundle that hangs is refused


def failed_rollouts(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict[str, Any]:
    """Each kind of bad bundle is deployed at 200 requests a second over 16 connections."""
    bad = {kind: make(folder / kind) for kind, make in BAD.items()}
    case = Case(make_bundle(folder / "good", name="m", item_shape=SHAPE, seed=1), SHAPE, binary=False)
    with case.served({}) as found:
        traffic = Traffic(found.url, case, RATE_PER_S, connections=CONNECTIONS)
        spans = {"without": traffic.during(lambda: None)}
        reasons = {}
        for kind, bundle in bad.items():
            refuse = {"op": "refused", "bundle": str(bundle), "ready_timeout_s": HANG_S}
            spans[kind] = traffic.during(lambda refuse=refuse, kind=kind: reasons.update({kind: found.tell(**refuse)}))
        answers = traffic.end()
    kinds = {kind: {**_span(answers, *span), **reasons.get(kind, {})} for kind, span in spans.items()}
    usual_ms = kinds["without"]["longest_ms"]
    return {
        "rate_per_s": RATE_PER_S,
        "connections": CONNECTIONS,
        "unsent": answers.unsent,
        "answers": answers.counts(),
        "longest_more_ms": round(max(each["longest_ms"] for each in kinds.values()) - usual_ms, 1),
        "kinds": kinds,
        "other_answers": [body.decode(errors="replace") for body in answers.bodies],
    }


def good_rollouts(options: argparse.Namespace, wrk: Wrk, folder: Path) -> dict[str, Any]:
    """A new version and a roll-back in turn at 200 requests a second, and the replica's memory along the way."""
    bundles = [make_bundle(folder / str(seed), name="m", item_shape=SHAPE, seed=seed) for seed in (1, 2)]
    case = Case(bundles[0], SHAPE, binary=False)
    with case.served({}) as found:
        traffic = Traffic(found.url, case, RATE_PER_S, connections=CONNECTIONS)
        memory = [memory_bytes(found)[0]]
        for _ in range(options.rollouts // 2):
            found.tell(op="deploy", bundle=str(bundles[1]))
            found.tell(op="rollback")
            memory.append(memory_bytes(found)[0])
        answers = traffic.end()
    return {
        "rate_per_s": RATE_PER_S,
        "connections": CONNECTIONS,
        "rollouts": 2 * (len(memory) - 1),
        "unsent": answers.unsent,
        **_span(answers, 0.0, float("inf")),
        "replica_mib": [round(value / 2**20, 1) for value in memory],
        "replica_growth": round(memory[-1] / memory[1] - 1, 4),
        "other_answers": [body.decode(errors="replace") for body in answers.bodies],
    }


def _span(answers: Answers, since_s: float, until_s: float) -> dict[str, Any]:
    due, latency = np.array(answers.due_s), np.array(answers.latency_s)
    chosen = (due >= since_s) & (due < until_s)
    taken_ms = latency[chosen] * 1e3
    return {
        "answers": answers.counts(since_s, until_s),
        "latency_ms_p99": round(float(np.percentile(taken_ms, 99)), 1),
        "longest_ms": round(float(taken_ms.max()), 1),
        "client_late_ms": round(float(np.array(answers.late_s)[chosen].max()) * 1e3, 1),
    }
