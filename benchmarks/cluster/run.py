"""The scheduler in a simulation, beside plain FIFO and start-at-once: `python -m benchmarks.cluster.run`.

The figures go into result.json and into the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cluster.simulate import Arrival, Decide, Simulation, arrivals_of, by_policy, hosts_of, start_at_once
from cluster.atomic import write_json, write_text
from cluster.control.policy import Policy

FOLDER = Path(__file__).parent
README, RESULT = FOLDER / "README.md", FOLDER / "result.json"
BEGIN, END = "<!-- figures: made by run.py -->\n", "<!-- end of figures -->\n"
CASES = ("manta", "fair", "fifo", "at-once")
COLUMNS = {
    "case": ("", "{}"),
    "gpu_utilization": ("GPUs in use", "{:.1%}"),
    "wait_min_mean": ("wait, mean", "{:.1f} min"),
    "wait_min_p99": ("99th", "{:.0f} min"),
    "wait_min_max": ("longest", "{:.0f} min"),
    "large_wait_min_mean": ("32 GPUs and more: mean", "{:.0f} min"),
    "large_wait_min_max": ("longest", "{:.0f} min"),
    "waited_over_60_s": ("waited over 60 s", "{:.1%}"),
    "never_started": ("never started", "{:d}"),
    "decision_ms_p50": ("decision, median", "{:.2f} ms"),
    "decision_ms_p99": ("99th", "{:.2f} ms"),
    "decision_ms_max": ("longest", "{:.1f} ms"),
}


def policy_of(case: str, arrivals: list[Arrival], seed: int) -> tuple[Decide, list[Arrival]]:
    """How a case decides, and what it knows of the runs."""
    if case == "fifo":
        alike = [Arrival(replace(run.request, priority=0), run.duration_s) for run in arrivals]
        return by_policy(Policy(backfill_tries=0, aging_s=None)), alike
    if case == "at-once":
        return start_at_once(seed), arrivals
    return by_policy(Policy(fair=case == "fair")), arrivals


def measure(case: str, hosts: int, runs: int, seed: int) -> dict[str, Any]:
    """One case's figures."""
    rooms = hosts_of(hosts)
    decide, arrivals = policy_of(case, arrivals_of(runs, rooms, seed), seed)
    started = time.monotonic()
    simulation = Simulation(rooms, arrivals, decide)
    simulation.run()
    took_s = round(time.monotonic() - started, 1)
    return {"hosts": hosts, "seed": seed, **simulation.figures(), "took_s": took_s, "python": platform.python_version()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The README's table."""
    rows = [" | ".join(title for title, _ in COLUMNS.values()), " | ".join("---" for _ in COLUMNS)]
    for case in CASES:
        if case in results:
            values = {"case": case, **results[case]}
            rows.append(" | ".join(form.format(values[name]) for name, (_, form) in COLUMNS.items()))
    return "".join(f"| {row} |\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20261201)
    parser.add_argument("--only", help="cases, with commas between them")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    results = json.loads(RESULT.read_text())["results"] if RESULT.exists() else {}
    for case in given.only.split(",") if given.only else CASES:
        results[case] = measure(case, given.hosts, given.runs, given.seed)
        print(case, json.dumps(results[case], indent=1), flush=True)
        if not given.dry:
            write(results)


def write(results: dict[str, dict[str, Any]]) -> None:
    """Into result.json and README.md."""
    write_json(RESULT, {"results": results})
    before, _, rest = README.read_text().partition(BEGIN)
    write_text(README, before + BEGIN + table(results) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
