"""Raw file to endpoint by the shipped configs: a raw JSON row has the probability that the evaluate stage gave it.

Rows come from the file by Python's own csv module, go over HTTP to the endpoint of `manta run --keep`, and are compared
with the logits that the training side computed for the same rows.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.bundle import open_bundle
from cluster.store.run_folder import RunFolder
from tests.bundles import softmax
from tests.e2e.conftest import ROOT, call_manta
from trainers.data.row_plan import plan_rows
from trainers.data.shards import open_prepared

TOLERANCE = 1e-5
ROWS_MAX = 500
FILES: dict[str, dict[str, str]] = {
    "adult": {"path": "adult-train.csv", "test_path": "adult-test.csv"},
    "mammography": {"path": "mammography.csv"},
    "sms_spam": {"path": "sms-spam.tsv"},
}
LONG = (pytest.mark.soak, pytest.mark.slow, pytest.mark.soak)  # a real run of about a minute each


@pytest.fixture(params=[pytest.param(name, marks=mark) for name, mark in zip(FILES, LONG, strict=True)])
def served(request: pytest.FixtureRequest, shared_data: Path, tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config's run with two epochs, its endpoint still answering."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    sets = [f"data.source.{key}={shared_data / name}" for key, name in FILES[request.param].items()]
    sets += ["train.epochs=2", "train.workers=1", "serve.port=0"]
    sets += [] if request.param == "mammography" else ["compress=null"]  # one of them as it is shipped
    flags = [word for value in sets for word in ("--set", value)]
    done = call_manta("run", f"configs/{request.param}.yaml", "--keep", "--json", *flags, cwd=tmp_path)
    try:
        assert done.code == 0, done.stderr
        yield request.param, done.json
    finally:
        call_manta("stop", Path(done.json.get("folder", "none")).name if done.code == 0 else "none", cwd=tmp_path)


def raw_rows(name: str, folder: Path) -> list[dict[str, Any]]:
    """All lines of the config's files as JSON-able objects: numbers as numbers, all else as text."""
    found: list[dict[str, Any]] = []
    for file in FILES[name].values():
        is_text = file.endswith(".tsv")  # a message stays text, also one of digits alone
        options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_text else {}
        with (folder / file).open(newline="", encoding="utf-8") as opened:
            rows = csv.DictReader(opened, **options)
            found += [{key.strip(): value if is_text else typed(value) for key, value in row.items()} for row in rows]
    return found


def typed(word: str) -> Any:
    try:
        return float(word)
    except ValueError:
        return word


def training_side(run: RunFolder) -> np.ndarray:
    """Probabilities of the test rows: the evaluate stage's, or the accepted compressed model's on the same tensors."""
    bundle = open_bundle(run.bundle)
    if bundle.variant().precision != "fp32":
        (tensor,) = bundle.manifest.signature.inputs
        tensors = open_prepared(run.stage("prepare")).splits["test"].inputs[tensor.name]
        return softmax(bundle.path(bundle.variant().file), tensors)
    with np.load(run.stage("evaluate") / "predictions.npz", allow_pickle=False) as found:
        logits = found["logits"].astype(np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_a_raw_json_row_has_the_probability_of_the_training_pipeline(
    served: tuple[str, dict[str, Any]], shared_data: Path
) -> None:
    name, summary = served
    run = RunFolder(Path(summary["folder"]))
    resolved = run.read_resolved()
    assert resolved is not None
    spec = resolved.spec.data
    rows = plan_rows(spec).rows["test"]
    expected = training_side(run)[:ROWS_MAX]
    raw = raw_rows(name, shared_data)
    asked = [{key: value for key, value in raw[row].items() if key != spec.target} for row in rows[:ROWS_MAX]]
    answer = httpx.post(f"{summary['endpoint']['url']}/predict", json={"rows": asked}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    got = np.array([list(each["probabilities"].values()) for each in predictions])
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)
    assert len(np.unique(got.round(4), axis=0)) > 50  # the rows matter
    one = httpx.post(f"{summary['endpoint']['url']}/predict", json={"rows": asked[:1]}, timeout=60, trust_env=False)
    assert one.json()["predictions"] == predictions[:1]
