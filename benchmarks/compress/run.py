"""Compression benchmarks, in pieces of at most five minutes; the last call merges them into result.json.

    python -m benchmarks.compress.run [--data ../shared/data] [--work FOLDER] [--again] [PIECE …]

A piece that lies in the work folder is not run again. Without names all pieces run, one after another:

    cnn          `manta run configs/mnist10k.yaml` without the endpoint: training, the search over recipes, the gate
    speed        every candidate of it against the float graph: one thread, alternating rounds, median of repeats
    transformer  a small transformer on SMS messages through `manta compress` on the bare ONNX file
    search       the wall time of the search over recipes, from cheap to dear
    after-…      every recipe one after another, a few networks a piece
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cluster.atomic import write_json
from cluster.runtime.environment import with_ray_environment
from cluster.spec.compress import CompressSpec, TargetSpec
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import ListSink

HERE = Path(__file__).parent
RUN = "mnist10k"
REPEATS = 3  # whole measurements, each the median of alternating rounds; the median of them is reported
COLUMNS = ("name", "verdict", "accepted", "accuracy", "drop", "low", "high", "n", "size_bytes", "macs", "reason")
PIECE_S = 300
REPORTED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_tile", "asimddp", "i8mm")
UNFINISHED = 75  # exit code of a piece that goes on when it is called again (sysexits.h: EX_TEMPFAIL)
CALLS_MAX = 4


def cnn(data: Path, work: Path) -> dict[str, Any]:
    """Run (or resume) the config, then read the compress stage's record."""
    command = [sys.executable, "-c", "from cluster.cli import main; main()", "run", str(HERE / "../../configs/mnist10k.yaml")]  # fmt: skip  # noqa: E501
    command += ["--runs-dir", str(work / "runs"), "--set", "serve=null"]
    for part, rank in (("images", 3), ("labels", 1)):
        command += ["--set", f"data.source.{part}={data / 'mnist10k' / f'{part}-idx{rank}-ubyte.gz'}"]
    _run_for_a_while(command)
    record = RunFolder(work / "runs" / RUN).record("compress")
    assert record is not None, "the stage has run"
    facts = record.facts
    baseline = facts["baseline"]["size_bytes"]
    rows = {one["name"]: _row(one, baseline) for one in facts["candidates"]}
    return {"chosen": facts["chosen"], "rival": facts["rival"], "test": facts["test"], "baseline": facts["baseline"],
            "candidates": rows, "skipped": facts["skipped"], "stage_s": record.duration_s}  # fmt: skip


def _run_for_a_while(command: list[str]) -> None:
    """Run `manta run`; what is not done in time is interrupted, keeps its finished parts, and exits with UNFINISHED."""
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            code = process.wait(PIECE_S - 30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise SystemExit(UNFINISHED) from None
    if code:
        raise SystemExit(code)


def speed(data: Path, work: Path) -> dict[str, Any]:
    """Candidates in turn, `REPEATS` times over, each against the float graph."""
    from trainers.compress.measure import paired_cost
    from trainers.data.shards import open_prepared

    run = RunFolder(work / "runs" / RUN)
    gate = open_prepared(run.stage("prepare")).splits["gate"].inputs
    folder = run.stage("compress")
    graphs = sorted(folder.glob("model.*.onnx"))
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(REPEATS):
        for graph in graphs:
            _, cost = paired_cost(folder / "model.onnx", graph, gate, TargetSpec())
            taken.setdefault(graph.name.split(".")[1], []).append((cost.speedup, cost.cost_ratio))
    return {
        name: {
            "latency_ratio": statistics.median(one for one, _ in ratios),
            "throughput_ratio": statistics.median(two for _, two in ratios),
            "all": ratios,
        }
        for name, ratios in taken.items()
    }


def transformer(data: Path, work: Path) -> dict[str, Any]:
    """Train, export, and compress the bare file with its held-out rows."""
    from benchmarks.compress.transformer import prepare
    from trainers.compress.command import compress_source

    graph, rows = prepare(data / "sms-spam.tsv", work / "transformer")
    spec = CompressSpec(recipes=("int8_dynamic", "int8_static", "int8_weight_only"), on_inconclusive="keep_baseline")
    facts = compress_source(graph, rows, work / "transformer" / "bundle", spec, ListSink())
    baseline = facts["baseline"]["size_bytes"]
    ratios = {"latency_ratio": "speedup", "throughput_ratio": "cost_ratio"}
    found = {
        one["name"]: {**_row(one, baseline), **{name: one[key] for name, key in ratios.items()}}
        for one in facts["candidates"]
    }
    return {"chosen": facts["chosen"], "baseline": facts["baseline"], "candidates": found}


def search(data: Path, work: Path) -> dict[str, Any]:
    from benchmarks.compress.search_time import search_cheap_to_dear

    return search_cheap_to_dear(RunFolder(work / "runs" / RUN), work)


def after(group: str, data: Path, work: Path) -> dict[str, Any]:
    from benchmarks.compress.search_time import try_everything

    return try_everything(RunFolder(work / "runs" / RUN), work, group)


Piece = Callable[[Path, Path], dict[str, Any]]
PIECES: dict[str, Piece] = {
    "cnn": cnn, "speed": speed, "transformer": transformer, "search": search,
    **{f"after-{group}": partial(after, group) for group in "abcde"},
}  # fmt: skip


def merge(work: Path) -> dict[str, Any]:
    """What the pieces found, and the table's rows with their goals."""
    found = {name: json.loads((work / f"{name}.json").read_text()) for name in PIECES if (work / f"{name}.json").exists()}  # fmt: skip  # noqa: E501
    ours = {
        "python": sys.version.split()[0],
        **{n: metadata.version(n) for n in ("torch", "onnxruntime", "ray", "numpy")},
    }
    return {"table": table(found), "pieces": found, "versions": ours, "machine": machine()}


def table(found: dict[str, Any]) -> dict[str, Any]:
    """The issue's rows: measured value, goal, whether it is met."""
    rows: dict[str, Any] = {}
    if "cnn" in found and "speed" in found:
        one, ratios = found["cnn"], found["speed"]
        chosen = one["candidates"][one["chosen"]]
        rows["cnn, throughput"] = _goal(ratios[one["chosen"]]["throughput_ratio"], 4.0)
        rows["cnn, times smaller"] = _goal(chosen["times_smaller"], 6.0)
        rows["cnn, points lost"] = _goal(100 * chosen["drop"], 1.0, most=True)
        rows["cnn, gate"] = {"measured": chosen["verdict"], "goal": "pass", "met": chosen["verdict"] == "pass"}
        rows["cnn, INT8 alone, throughput"] = _goal(ratios["int8_static"]["throughput_ratio"], 2.3)
        rows["chosen against its rival"] = _against_rival(one)
    if "transformer" in found:
        one = found["transformer"]
        chosen = one["candidates"].get(one["chosen"])
        rows["transformer, throughput"] = _goal(chosen["throughput_ratio"] if chosen else 1.0, 2.0)
        rows["transformer, points lost"] = _goal(100 * chosen["drop"] if chosen else 0.0, 1.0, most=True)
    parts = [part for name, part in found.items() if name.startswith("after-")]
    if "search" in found and len(parts) == sum(name.startswith("after-") for name in PIECES):
        total = sum(part["seconds"] for part in parts)
        rows["search's time / one after another"] = _goal(found["search"]["seconds"] / total, 0.5, most=True)
    return rows


def _against_rival(one: dict[str, Any]) -> dict[str, Any]:
    """Met where the chosen one is at least as accurate as the rival of equal cost, or the rival is recommended."""
    rival = one["rival"]
    ours, dense = (one["candidates"][rival[key]]["accuracy"] for key in ("ours", "rival"))
    return {"measured": rival["sentence"], "met": ours >= dense or rival["recommended"] == rival["rival"]}


def machine() -> dict[str, Any]:
    from trainers.compress.cpu import CPUINFO, cpu_flags

    names = [line.partition(":")[2] for line in CPUINFO.read_text().splitlines() if line.startswith("model name")]
    name = names[0].strip() if names else "unknown"
    return {"cpu": name, "cores": os.cpu_count(), "flags": sorted(set(REPORTED_FLAGS) & cpu_flags())}


def run_piece(name: str, data: Path, work: Path) -> None:
    started, before = time.monotonic(), os.getloadavg()[0]
    found = PIECES[name](data, work)
    found = {**found, "piece_s": time.monotonic() - started, "load_before": before, "load_after": os.getloadavg()[0]}
    write_json(work / f"{name}.json", json.loads(json.dumps(found, default=_plain)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "manta-bench" / "compress")
    parser.add_argument("--again", action="store_true", help="run pieces that are there already")
    parser.add_argument("pieces", nargs="*", metavar="PIECE")
    options = parser.parse_args()
    os.environ.update(with_ray_environment(dict(os.environ)))  # before anything imports ray
    data, work = options.data.resolve(), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in options.pieces or PIECES:
        if (work / f"{name}.json").exists() and not options.again:
            continue
        if len(options.pieces) == 1:
            run_piece(name, data, work)
            continue
        command = [sys.executable, "-m", "benchmarks.compress.run", "--data", str(data), "--work", str(work), "--again"]
        for _ in range(CALLS_MAX):
            code = subprocess.run([*command, name], check=False).returncode
            if code != UNFINISHED:
                break
        if code:
            raise SystemExit(code)
    result = merge(work)
    write_json(HERE / "result.json", result)
    for row, values in result["table"].items():
        sys.stdout.write(f"{row}: {values}\n")


def _row(one: dict[str, Any], baseline_bytes: int) -> dict[str, Any]:
    size = one["size_bytes"]
    return {**{key: one.get(key) for key in COLUMNS}, "times_smaller": baseline_bytes / size if size else None}


def _goal(measured: float, goal: float, *, most: bool = False) -> dict[str, Any]:
    return {"measured": measured, "at most" if most else "at least": goal,
            "met": measured <= goal if most else measured >= goal}  # fmt: skip


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


if __name__ == "__main__":
    main()
