"""Our loop against a hand-written one on a GPU: ResNet-50 and BERT-base, bf16 and fp16, and the micro-batch probe.

    python -m benchmarks.training_gpu.run                 needs an NVIDIA GPU; prints
    python -m benchmarks.training_gpu.run --device cpu    a dry run: tiny networks

Ratio = our rows a second / theirs: above 1 ours is faster. Alternating pairs in processes of their own, medians.
Covered: one GPU. Not covered: several, and data that does not fit in memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_gpu.loops import Case, by_hand, ours, request_of, write_rows

CASES = {
    "resnet50_bf16": Case("resnet50", "bf16", 256),
    "resnet50_fp16": Case("resnet50", "fp16", 256),
    "bert_base_bf16": Case("bert_base", "bf16", 128),
    "bert_base_fp16": Case("bert_base", "fp16", 128),
}
DRY = {
    "resnet50_bf16": Case("resnet50", "bf16", 4, scale=8),
    "bert_base_fp16": Case("bert_base", "fp16", 2, scale=12),
}
GOAL = 0.99
ROWS_PER_BATCH = 8  # batches in memory: enough that caches hold none of them
UPDATES, WARM_UP = 100, 20


def main(arguments: list[str] | None = None) -> int:
    """0, or 3 where the device is missing."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("This machine has no CUDA GPU; --device cpu is a dry run of the same code.\n")
        return 3
    if options.child:
        print(json.dumps(_child(options.child, options.side, Path(options.data), device)))
        return 0
    dry = device.type == "cpu"
    report: dict[str, Any] = {"device": _device(device), "results": {}}
    for name, case in (DRY if dry else CASES).items():
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
            write_rows(Path(folder), case, ROWS_PER_BATCH * case.batch)
            report["results"][name] = _pairs(name, Path(folder), 1 if dry else options.pairs, device)
            report["results"][name]["probe"] = _measure(name, "probe", Path(folder), device)
        print(name, json.dumps(report["results"][name]), flush=True)
    print(json.dumps(report["device"]))
    return 0


def _pairs(name: str, folder: Path, pairs: int, device: torch.device) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"ours": [], "by_hand": []}
    for pair in range(pairs):
        for side in ("ours", "by_hand") if pair % 2 == 0 else ("by_hand", "ours"):
            found[side].append(_measure(name, side, folder, device))
    ratios = [a["rows_per_s"] / b["rows_per_s"] for a, b in zip(found["ours"], found["by_hand"], strict=True)]
    sides = {
        side: {key: round(statistics.median(item[key] for item in items), 2) for key in items[0]}
        for side, items in found.items()
    }
    return {"goal": GOAL, "ratio": round(statistics.median(ratios), 4), "ratios": ratios, **sides}


def _measure(name: str, side: str, folder: Path, device: torch.device) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training_gpu.run", "--child", name, "--side", side]
    command += ["--data", str(folder), "--device", device.type]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} {side} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _child(name: str, side: str, folder: Path, device: torch.device) -> dict[str, Any]:
    dry = device.type == "cpu"
    case = (DRY if dry else CASES)[name]
    if side == "probe":
        return probe(case, folder, device)
    updates, warm_up = (2, 1) if dry else (UPDATES, WARM_UP)
    speed = (ours if side == "ours" else by_hand)(case, folder, device, updates, warm_up)
    return {"rows_per_s": speed, "peak_memory_mib": _peak_memory_mib(device)}


def probe(case: Case, prepared: Path, device: torch.device) -> dict[str, Any]:
    """What `batch_size_per_worker: auto` finds for a share of 64 times the case's batch, and how long it takes."""
    from dataclasses import replace

    from cluster.telemetry.events import ListSink
    from trainers.loop.setup import set_up
    from trainers.loop.tuner.batch_size_finder import probe_micro_batch

    request = request_of(case, prepared)
    share = case.batch * (2 if device.type == "cpu" else 64)
    request = replace(request, batch=request.batch.model_copy(update={"batch_size_global": share}))
    job, state = set_up(request, ListSink(), device)
    started = time.perf_counter()
    report = probe_micro_batch(job, state)
    fitting = max(trial.rows for trial in report.trials if trial.fits)
    return {
        "rows": report.rows,
        "fitting": fitting,
        "reason": report.reason,
        "seconds": time.perf_counter() - started,
    }


def _peak_memory_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / (1 << 20) if device.type == "cuda" else 0.0


def _device(device: torch.device) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    if device.type == "cpu":
        return {"name": "cpu", **versions}
    from cluster.probe.gpus import NvmlSource

    return {
        "name": torch.cuda.get_device_name(device),
        "driver": NvmlSource().read().driver_version,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **versions,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--child", default="")
    parser.add_argument("--side", default="")
    parser.add_argument("--data", default="")
    return parser


if __name__ == "__main__":
    sys.exit(main())
