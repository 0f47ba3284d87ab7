"""Our loop against hand-written loops and peers, on this machine's CPU: alternating pairs, medians, ratios.

    python -m benchmarks.training_cpu.run [--pairs 5] [--peers-python VENV/bin/python] [--only mlp,ddp,…]

Ratio = time of the other / our time: above 1 ours is faster. Every measured run is one epoch in a process of its own,
first ours, then the other, then the other first, and so on; start-up, imports and reading of data are not counted,
but for the cases of start.py, which measure just these. A case that is measured replaces its former figures in
result.json; the others stay, each with its own date, load and versions.
Covered: the cases of README.md. Not covered: GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULT, README = Path(__file__).with_name("result.json"), Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures: written by run.py -->\n", "<!-- end of figures -->"
CASES: dict[str, dict[str, Any]] = {
    "mlp_raw": {"ours": "mlp", "other": "mlp_raw", "workers": 1, "goal": 0.95},
    "mlp_accelerate": {"ours": "mlp", "other": "mlp_accelerate", "workers": 1, "goal": 1.9, "peer": True},
    "mlp_lightning": {"ours": "mlp", "other": "mlp_lightning", "workers": 1, "goal": 2.2, "peer": True},
    "ddp": {"ours": "cnn", "other": "cnn_ddp", "workers": 2, "goal": 0.98},
    "ddp_accumulate_8": {"ours": "cnn_8", "other": "cnn_ddp_8", "workers": 2, "goal": 0.98},
    "diagnostics": {"ours": "mlp_inspected", "other": "mlp", "workers": 1, "goal": 0.99},
    "start": {"clocks": ("first_update", "whole"), "goal": 1.3},
    "start_one": {"clocks": ("first_update", "whole"), "goal": 1.3},
    "run": {"clocks": ("table_700", "quickstart"), "goal": "12 s, 35 s"},
}
WALL_AND_CPU = ("wall", "cpu")


def main() -> None:
    options = _arguments()
    if options.child:
        wall, cpu = _child(options.child, Path(options.data))
        print(json.dumps({"wall": wall, "cpu": cpu}))
        return
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.training_cpu.run", "--child", "data", "--data", folder], check=True
        )
        for name, case in CASES.items():
            if (options.only and name not in options.only.split(",")) or (
                case.get("peer") and not options.peers_python
            ):
                continue
            report = _pairs(name, Path(folder), options)
            print(name, json.dumps(report), flush=True)
            _write(name, report, options)


def _pairs(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Alternating pairs: what else the machine does hits both sides."""
    case = CASES[name]
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "other": []}
    load = os.getloadavg()
    for pair in range(options.pairs):
        for side in ("ours", "other") if pair % 2 == 0 else ("other", "ours"):
            seconds[side].append(_one(name, side, folder, options))
    report: dict[str, Any] = {"goal": case["goal"]}
    for index, clock in enumerate(case.get("clocks", WALL_AND_CPU)):
        ours, other = ([pair[index] for pair in seconds[side]] for side in ("ours", "other"))
        ratios = [b / a for a, b in zip(ours, other, strict=True)]
        report[clock] = {
            "ours_s": round(statistics.median(ours), 3),
            "other_s": round(statistics.median(other), 3),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
    return {**report, "load_average_before": [round(value, 2) for value in load]}


def _one(name: str, side: str, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    case = CASES[name]
    if "clocks" in case:
        from benchmarks.training_cpu.start import measure

        return measure(name, side)
    python = options.peers_python if case.get("peer") and side == "other" else sys.executable
    return _measure(case[side], python, case["workers"], folder)


def _measure(what: str, python: str, workers: int, folder: Path) -> tuple[float, float]:
    """(wall clock, CPU) seconds of one epoch in new processes, one thread each; the slowest process counts."""
    store = tempfile.mktemp(dir=folder)
    command = [python, "-m", "benchmarks.training_cpu.run", "--child", what, "--data", str(folder)]
    processes = []
    for rank in range(workers):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENCH_RANK": str(rank), "BENCH_STORE": store}
        environment["BENCH_WORLD"] = str(workers)
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{what} failed")
    found = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
    return max(item["wall"] for item in found), max(item["cpu"] for item in found)


def _child(what: str, folder: Path) -> tuple[float, float]:
    import torch

    from benchmarks.training_cpu import ours, peers

    if what == "data":
        ours.write_data(folder)
        return 0.0, 0.0
    torch.set_num_threads(1)
    if int(os.environ.get("BENCH_WORLD", "1")) > 1:
        import torch.distributed as dist

        rank, world = int(os.environ["BENCH_RANK"]), int(os.environ["BENCH_WORLD"])
        store = dist.FileStore(os.environ["BENCH_STORE"], world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    runners = {**ours.RUNNERS, **peers.RUNNERS}
    found = runners[what](folder)
    if int(os.environ.get("BENCH_WORLD", "1")) > 1:
        dist.barrier()
        dist.destroy_process_group()
    return found


def _write(name: str, report: dict[str, Any], options: argparse.Namespace) -> None:
    """Put one case's figures beside those that are there."""
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    taken = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_cores": os.cpu_count(),
        "pairs": options.pairs,
        "versions": _versions(name, options),
    }
    results = {**known.get("results", {}), name: {**report, **taken}}
    ordered = {case: results[case] for case in CASES if case in results}
    RESULT.write_text(json.dumps({"results": ordered}, indent=2) + "\n")
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + table(ordered) + END + rest.partition(END)[2])


def table(results: dict[str, Any]) -> str:
    """The figures of result.json for README.md."""
    lines = ["| case | clock | ours | other | ratio | goal | spread of ratios | load before |", "| --- " * 8 + "|"]
    for name, case in results.items():
        for clock in CASES[name].get("clocks", WALL_AND_CPU):
            found = case[clock]
            spread = f"{min(found['ratios'])} to {max(found['ratios'])}"
            figures = (f"{found['ours_s']} s", f"{found['other_s']} s", f"**{found['ratio']}**", str(case["goal"]))
            load = str(case["load_average_before"][0])
            lines.append(f"| {' | '.join((f'`{name}`', clock, *figures, spread, load))} |")
    return "\n".join(lines) + "\n"


def _versions(name: str, options: argparse.Namespace) -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if CASES[name].get("peer"):
        code = "import json,accelerate,lightning;print(json.dumps([accelerate.__version__,lightning.__version__]))"
        found = subprocess.run([options.peers_python, "-c", code], capture_output=True, text=True, check=True).stdout
        versions["accelerate"], versions["lightning"] = json.loads(found.strip().splitlines()[-1])
    if "clocks" in CASES[name]:
        from importlib.metadata import version

        versions["ray"] = version("ray")
    return versions


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--peers-python", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--child", default="")
    parser.add_argument("--data", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
