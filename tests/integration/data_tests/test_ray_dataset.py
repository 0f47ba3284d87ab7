"""A `python:` source that returns a Ray Dataset, on a real Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.data_tests.making import context, run_spec
from trainers.data.shards import open_prepared
from trainers.data.stages import check_data, prepare_data

MODULE = """
import numpy as np, pandas as pd

def frame():
    a = np.arange(600.0)
    return pd.DataFrame({"a": a, "b": [f"w{int(i) % 3}" for i in a], "y": (a % 5 > 2).astype(int)})

def dataset():
    import ray
    assert ray.is_initialized(), "the session must stand before this function is called"
    double = lambda batch: {**batch, "a": batch["a"] * 2}
    whole = frame()
    return ray.data.from_pandas([whole.iloc[at : at + 100] for at in range(0, 600, 100)]).map_batches(double)
"""


def test_a_ray_dataset_waits_for_the_session_and_gives_one_digest_and_all_rows(
    ray_local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manta_ray_source.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = {"kind": "python", "function": "manta_ray_source:dataset", "needs_ray": True}
    spec = run_spec(source, target="y")
    waited: list[str] = []

    def stage(name: str, **values: object) -> object:
        def ensure_ray() -> bool:
            waited.append(name)
            return True

        return dataclasses.replace(context(tmp_path / name, spec, name, **values), ensure_ray=ensure_ray)

    checked = [check_data(stage(name)) for name in ("check", "again")]
    assert checked[0].resolved.data == checked[1].resolved.data
    assert checked[0].resolved.data.num_rows == 600
    prepare_data(stage("prepare", resolved=checked[0].resolved))
    assert waited == ["check", "again", "prepare"]
    prepared = open_prepared(tmp_path / "prepare")
    assert sum(len(split) for split in prepared.splits.values()) == 600


@pytest.mark.slow
def test_explain_starts_a_ray_for_a_source_that_makes_a_ray_dataset_and_ends_it(tmp_path: Path) -> None:
    """A process of its own: no session stands there."""
    (tmp_path / "manta_ray_source.py").write_text(MODULE)
    source = {"kind": "python", "function": "manta_ray_source:dataset", "needs_ray": True}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"version": 1, "data": {"source": source, "target": "y"}}))
    done = subprocess.run(
        [sys.executable, "-m", "trainers.explain", "s.yaml", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    explained = json.loads(done.stdout)
    assert explained["data"]["num_rows"] == 600
    assert explained["way"].startswith("in memory")
