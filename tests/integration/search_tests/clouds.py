"""Two clouds of points as a prepared data set, and a search stage's context over them.

`python -m tests.integration.search_tests.clouds RUN FOLDER SEARCH_JSON` runs the stage in a process that can be killed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bundle.signature import TensorSpec
from cluster.pipeline.stage import StageContext
from cluster.spec.load import validate_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EventSink, ListSink
from trainers.data.shards import Split, write_prepared

ROWS = {"train": 96, "validation": 48, "calibration": 8, "gate": 8, "test": 8}
HOST = HostFacts(cpu_cores=2, memory_bytes=8 << 30)
DATA = DataFacts(
    task="classification", layout="array", num_rows=168, num_rows_train=96, num_classes=2, source_digest="x"
)
SPACE = {
    "train.optimizer.learning_rate": {"kind": "log_uniform", "low": 1e-3, "high": 1e-1},
    "train.batch_size_global": {"kind": "choice", "values": [8, 16, 32]},
}


def write_clouds(run: Path) -> Path:
    """A run folder whose prepare stage holds two classes of four features, separable but for noise."""
    rng = np.random.default_rng(7)
    splits = {}
    for name, rows in ROWS.items():
        targets = np.arange(rows, dtype=np.int64) % 2
        features = rng.normal(size=(rows, 4)).astype(np.float32) + 1.5 * targets[:, None].astype(np.float32)
        splits[name] = Split({"features": features}, targets)
    folder = run / "stages" / "prepare"
    folder.mkdir(parents=True)
    tensor = TensorSpec(name="features", datatype="FP32", shape=(-1, 4))
    write_prepared(folder, splits, task="classification", classes=("0", "1"), inputs=(tensor,))
    return run


def context_over(run: Path, folder: Path, search: dict[str, Any], events: EventSink | None = None) -> StageContext:
    """A search stage's context in a copy of the run beside `folder`; `search` overrides the section."""
    own = folder.with_name(f"{folder.name}.run")
    if not own.exists():
        shutil.copytree(run, own)
    spec = validate_spec(
        {
            "version": 1,
            "data": {"source": {"kind": "sklearn", "dataset": "digits"}, "task": "classification"},
            "model": {"family": "mlp", "hidden": [8]},
            "train": {"epochs": 3, "batch_size_global": 16, "workers": 1, "precision": "fp32"},
            "search": {"space": SPACE, "trials": 4, "concurrency": 2, "grace_epochs": 1, **search},
        }
    )
    folder.mkdir(exist_ok=True)
    return StageContext(
        stage="search",
        run=RunFolder(own),
        spec=spec,
        resolved=resolve(spec, name="clouds", host=HOST, data=DATA),
        host=HOST,
        folder=folder,
        digest="d" * 64,
        records={},
        events=events or ListSink(),
    )


def main() -> None:
    """Run the stage on a private Ray."""
    from cluster.runtime.environment import with_ray_environment

    os.environ.update(with_ray_environment(dict(os.environ)))
    from cluster.runtime.session import ray_session
    from trainers.search.stage import run_search

    run, folder, search = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    with ray_session():
        run_search(context_over(run, folder, search))


if __name__ == "__main__":
    main()
