"""Raw file to answers by a shipped config: check, prepare, fit, export and `python -m serve`, without Ray.

The same through `manta run` and Ray Serve, for all three configs, is tests/e2e/cli_tests/test_configs.py (slow).
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from cluster.pipeline.stage import StageContext
from cluster.spec.load import validate_spec
from cluster.spec.resolve import HostFacts, ResolvedRun
from cluster.spec.run import RunSpec
from cluster.store.run_folder import RunFolder, StageRecord
from cluster.telemetry.events import ListSink
from tests.contract.protocol_tests.conftest import server_process
from tests.e2e.cli_tests.test_configs import FILES, ROWS_MAX, TOLERANCE, raw_rows
from tests.e2e.conftest import ROOT
from trainers.data.row_plan import plan_rows
from trainers.data.shards import open_prepared
from trainers.data.stages import check_data, prepare_data
from trainers.export.stage import run_export
from trainers.loop import FitRequest, fit
from trainers.models.weights import load_module

NAMES = ("mammography", pytest.param("sms_spam", marks=pytest.mark.slow))  # 8 s each


class Pipeline:
    """The stages of one run, called in this process."""

    def __init__(self, run: RunFolder, spec: RunSpec) -> None:
        self.run, self.spec = run, spec
        self.resolved: ResolvedRun | None = None
        self.records: dict[str, StageRecord] = {}

    def context(self, stage: str) -> StageContext:
        folder = self.run.stage(stage)
        folder.mkdir(parents=True, exist_ok=True)
        return StageContext(
            stage=stage, run=self.run, spec=self.spec, resolved=self.resolved, folder=folder, digest="d",
            host=HostFacts(cpu_cores=1, memory_bytes=1 << 32), records=self.records, events=ListSink(),
        )  # fmt: skip

    def record(self, stage: str, **facts: object) -> None:
        self.records[stage] = StageRecord(
            stage=stage, inputs_digest="x", facts=dict(facts), started_unix_s=0.0, duration_s=1.0
        )

    def bundle(self) -> Path:
        self.resolved = check_data(self.context("check")).resolved
        assert self.resolved is not None
        prepare_data(self.context("prepare"))
        self.record("prepare")
        spec = self.resolved.spec
        request = FitRequest(
            train=spec.train, batch=self.resolved.batch, model=spec.model, seed=spec.seed, stage="train",
            prepared=self.run.stage("prepare"), checkpoints=None,
        )  # fmt: skip
        weights = fit(request, sink=ListSink()).weights
        save_file(weights, self.context("train").folder / "weights.safetensors")
        self.record("train")
        self.record("evaluate", metrics={})
        run_export(self.context("export"))
        return self.run.bundle


@pytest.mark.parametrize("name", NAMES)
def test_a_raw_row_of_the_file_has_the_trained_networks_probability(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    raw["data"]["source"] |= {key: str(shared_data / file) for key, file in FILES[name].items()}
    raw |= {"compress": None, "name": name.replace("_", "-")}
    raw["train"] = {**raw.get("train", {}), "epochs": 1, "workers": 1}
    pipeline = Pipeline(RunFolder(tmp_path / "run"), validate_spec(raw))
    bundle = pipeline.bundle()
    assert pipeline.resolved is not None
    spec, prepared = pipeline.resolved.spec, open_prepared(pipeline.run.stage("prepare"))
    module = load_module(spec.model, prepared.inputs, prepared.num_outputs, pipeline.run.stage("train"))
    tensors = [
        torch.from_numpy(np.array(prepared.splits["test"].inputs[one.name][:ROWS_MAX])) for one in prepared.inputs
    ]
    with torch.no_grad():
        expected = torch.softmax(module.eval()(*tensors).double(), dim=1).numpy()
    lines = raw_rows(name, shared_data)
    rows = [
        {key: value for key, value in lines[row].items() if key != spec.data.target}
        for row in plan_rows(spec.data).rows["test"][:ROWS_MAX]
    ]
    with server_process(bundle) as address:
        answer = httpx.post(
            f"http://{address}/predict", content=json.dumps({"rows": rows}), timeout=60, trust_env=False
        )
    assert answer.status_code == 200, answer.text
    got = np.array([list(row["probabilities"].values()) for row in answer.json()["predictions"]])
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)
    assert len(np.unique(got.round(4), axis=0)) > 50  # the rows matter
