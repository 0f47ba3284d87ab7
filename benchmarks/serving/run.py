"""Serving benchmarks: throughput beside other servers in alternating rounds, and what happens under stress.

    python -m benchmarks.serving.run --wrk wrk [--peers VENV] [--cases json64 images cnn overload rollout …]

Client and servers share the machine. README.md says what each case is and how to read `result.json`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from benchmarks.serving.measure import Wrk
from benchmarks.serving.resilience import overload, rollout, soak
from benchmarks.serving.rollout import failed_rollouts, good_rollouts
from benchmarks.serving.throughput import cnn, images, json64
from cluster.atomic import write_json

HERE = Path(__file__).parent
CASES = {
    "json64": json64,
    "images": images,
    "cnn": cnn,
    "overload": overload,
    "rollout": rollout,
    "failed_rollouts": failed_rollouts,
    "good_rollouts": good_rollouts,
    "soak": soak,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wrk", default="wrk")
    parser.add_argument("--servers", nargs="+", help="of case json64, bare first; all when absent")
    parser.add_argument("--peers", type=Path, help="virtual environment with litserve and mlserver")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--soak-seconds", type=float, default=600.0)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    options = parser.parse_args()
    results = json.loads(options.out.read_text())["cases"] if options.out.exists() else {}
    for name in options.cases:
        load = round(os.getloadavg()[0], 1)
        with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
            found = CASES[name](options, Wrk(options.wrk, Path(folder)), Path(folder))
        results[name] = {**found, "load_before": load, "measured_unix_s": round(time.time())}
        print(name, json.dumps(results[name], indent=2))
    packages = ("ray", "onnxruntime", "fastapi", "uvicorn", "numpy", "orjson")
    write_json(
        options.out,
        {
            "cases": results,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "versions": {name: importlib.metadata.version(name) for name in packages},
        },
    )


if __name__ == "__main__":
    main()
