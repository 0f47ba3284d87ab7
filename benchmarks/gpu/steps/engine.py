"""The torch engine on the device: right answers at every batch size, its speed, and the batcher over it under load."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from benchmarks.gpu.findings import Context, Findings
from benchmarks.gpu.steps.served import CLOSE, ROWS, SIGNATURE, off, torch_bundle
from cluster.bundle import open_bundle
from serve.batching.batcher import Batcher, BatchPolicy
from serve.engines import EngineRequest, make_engine
from serve.protocol.limits import Limits
from serve.protocol.statistics import ModelStatistics

SIZES = (1, 2, 7, 64)
CLIENTS, LOAD_S = 256, 5.0


def run(context: Context, findings: Findings) -> None:
    folder, rows, logits = torch_bundle(context)
    bundle = open_bundle(folder)
    variant = bundle.variant()
    engine = make_engine(
        EngineRequest(bundle.path(variant.file), SIGNATURE, 64, context.device, model=bundle.manifest.model)
    )
    worst = max(off(engine.run({"x": rows[:size]})["logits"], logits[:size]) for size in SIZES)
    findings.put("answers", ok=worst <= CLOSE, worst=worst, footprint_bytes=engine.footprint_bytes())
    for size in SIZES:
        calls, started = 0, time.perf_counter()
        while time.perf_counter() - started < (0.05 if context.dry else 0.5):
            engine.run({"x": rows[:size]})
            calls += 1
        findings.put(f"{size}_rows", calls_per_s=round(calls / (time.perf_counter() - started), 1))
    seconds = 0.2 if context.dry else min(LOAD_S, max(1.0, context.left_s() / 2))
    findings.put("batcher", **asyncio.run(load(engine, rows, logits, seconds)))
    engine.close()


async def load(engine: Any, rows: np.ndarray, logits: np.ndarray, seconds: float) -> dict[str, Any]:
    """Clients that ask one row at a time, as fast as they are answered; each checks its own answers."""
    statistics = ModelStatistics("gpu", "1")
    batcher = Batcher(engine.run, SIGNATURE, BatchPolicy(max_rows=64, max_wait_s=0.001), Limits(), statistics)
    until, worst, answered = time.monotonic() + seconds, 0.0, 0

    async def client(number: int) -> None:
        nonlocal worst, answered
        turn = 0
        while not turn or time.monotonic() < until:  # at least once, also where starting them all takes that long
            row = (number + 17 * turn) % ROWS
            answer = await batcher.submit({"x": rows[row : row + 1]})
            worst = max(worst, float(np.abs(answer["logits"] - logits[row]).max() / np.abs(logits).max()))
            answered, turn = answered + 1, turn + 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    await batcher.drain()
    batcher.close()
    counts = statistics.to_json()
    calls = max(1, counts["execution_count"])
    return {
        "ok": worst <= CLOSE and counts["inference_count"] == answered,
        "worst": worst,
        "rows_per_s": round(answered / seconds, 1),
        "rows_per_call": round(answered / calls, 2),
    }
