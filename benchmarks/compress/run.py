"""Compress a CNN on 10,000 MNIST digits by the whole pipeline and write result.json.

python -m benchmarks.compress.run DIR_WITH_IDX_FILES [RUNS_DIR]
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAME = "bench-compress-mnist10k"
COLUMNS = (
    "name",
    "verdict",
    "accuracy",
    "drop",
    "low",
    "high",
    "n",
    "size_bytes",
    "latency_ms_p50",
    "speedup",
    "reason",
)


def main(data: Path, runs: Path) -> None:
    """Run (or resume) the spec, then read the compress stage's record."""
    command = [sys.executable, "-c", "from cluster.cli import main; main()", "run", str(HERE / "mnist10k.yaml")]
    command += ["--runs-dir", str(runs)]
    for part in ("images", "labels"):
        rank = {"images": 3, "labels": 1}[part]
        command += ["--set", f"data.source.{part}={data / f'{part}-idx{rank}-ubyte.gz'}"]
    subprocess.run(command, check=True)
    record = json.loads((runs / NAME / "stages" / "compress" / "record.json").read_text(encoding="utf-8"))
    (HERE / "result.json").write_text(json.dumps(summary(record["facts"]), indent=2) + "\n", encoding="utf-8")


def summary(facts: dict[str, Any]) -> dict[str, Any]:
    """The table of candidates, the choice, and what it was measured with."""
    return {
        "chosen": facts["chosen"],
        "baseline": facts["baseline"],
        "candidates": [{key: one[key] for key in COLUMNS} for one in facts["candidates"]],
        "skipped": facts["skipped"],
        "versions": {name: metadata.version(name) for name in ("torch", "onnxruntime", "ray", "numpy")},
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2] if len(sys.argv) > 2 else "runs").resolve())
