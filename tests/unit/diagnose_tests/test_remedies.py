"""Under-fitting judged against what is reached without a network; remedies measured in short trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.bundle.signature import TensorSpec
from cluster.spec import load_spec, parse_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import EpochFinished, FileSink, Record
from trainers.data.shards import Split, open_prepared, write_prepared
from trainers.diagnose import diagnose
from trainers.diagnose.__main__ import main
from trainers.diagnose.reference import Reference, constant_loss
from trainers.diagnose.remedies import Measured, winner
from trainers.loop.__main__ import request_of_run
from trainers.loop.loop import fit

SPEC = parse_spec(
    "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\nmodel: {family: mlp, hidden: [1]}\n"
    "train: {epochs: 6, workers: 1}\n"
)
CLASSES = 8


def epochs(train: float, validation: float) -> list[Record]:
    """Six alike: nothing falls."""
    metrics = {"train.loss": train, "validation.loss": validation}
    return [EpochFinished(stage="train", epoch=i, epochs=6, update=i, metrics=metrics) for i in range(1, 7)]


QUICK = Reference(2.3, "boosted trees", "accuracy", network=0.45, constant=0.1, quick=0.83)


@pytest.mark.parametrize(
    ("losses", "reference", "found"),
    [
        ((2.1, 2.1), Reference(2.3), True),
        ((2.1, 2.1), None, False),
        ((12.0, 11.8), Reference(1.0), True),  # R² -10.8
        ((0.3, 0.3), Reference(2.3), False),
        ((0.3, 2.1), Reference(2.3), False),  # by heart
        ((1.2, 1.2), QUICK, True),
        ((1.2, 1.2), replace(QUICK, network=0.82), False),
        ((2.2, 2.2), replace(QUICK, network=0.11, quick=0.1), False),  # there is nothing to learn
    ],
)
def test_a_flat_loss_is_judged_by_what_is_reached_without_a_network(
    losses: tuple[float, float], reference: Reference | None, found: bool
) -> None:
    findings = diagnose(epochs(*losses), SPEC, reference=reference)
    assert [finding.code for finding in findings] == (["underfitting"] if found else [])
    assert all(finding.change == {"model.hidden": [64]} and len(finding.others) == 3 for finding in findings)


def trained(folder: Path) -> RunFolder:
    """Eight classes by the signs of three sums, learned through one unit."""
    run, rng = RunFolder(folder / "run"), np.random.default_rng(0)
    run.path.mkdir()
    splits = {}
    for name, rows in (("train", 512), ("validation", 256)):
        values = rng.normal(size=(rows, 9)).astype(np.float32)
        signs = values.reshape(rows, 3, 3).sum(axis=2) > 0
        splits[name] = Split({"x": values}, (signs * [1, 2, 4]).sum(axis=1).astype(np.int64))
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 9)),)
    classes = tuple("abcdefgh")
    write_prepared(run.stage("prepare"), splits, task="classification", classes=classes, inputs=inputs)
    facts = DataFacts(
        task="classification", layout="array", num_rows=768, num_rows_train=512, num_classes=CLASSES, source_digest="0"
    )
    run.write_resolved(resolve(SPEC, name="run", host=HostFacts(cpu_cores=2, memory_bytes=1 << 30), data=facts))
    (run.path / "spec.yaml").write_text(json.dumps(SPEC.model_dump(mode="json", exclude_unset=True)))
    fit(request_of_run(run, [], folder / "out"), sink=FileSink(run.events), device=torch.device("cpu"))
    return run


def test_apply_tries_the_remedies_and_keeps_what_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path)
    assert constant_loss(open_prepared(run.stage("prepare"))) == pytest.approx(np.log(CLASSES), abs=0.05)
    assert main([str(run.path), "--apply", str(tmp_path / "new.yaml")]) == 0
    captured = capsys.readouterr()
    assert "has learned little" in captured.out
    tried = [line for line in captured.err.splitlines() if "in a short training" in line]
    assert len(tried) == 5
    assert tried[0].startswith("as it is: validation.loss ")
    kept = [line for line in tried if line.endswith("(kept)")]
    assert len(kept) == 1
    assert "model.hidden=[64]" in kept[0]
    assert load_spec(tmp_path / "new.yaml").model.hidden == (64,)


def test_only_a_gain_beyond_noise_wins() -> None:
    resolved = resolve(
        SPEC,
        name="run",
        host=HostFacts(cpu_cores=2, memory_bytes=1 << 30),
        data=DataFacts(task="classification", layout="array", num_rows=9, num_rows_train=9, source_digest="0"),
    )
    as_it_is, same, better = Measured({}, 1.0), Measured({"model.dropout": 0.3}, 0.995), Measured({"seed": 2}, 0.9)
    assert winner(resolved, [as_it_is, same]) is as_it_is
    assert winner(resolved, [as_it_is, same, better, Measured({"seed": 3}, None)]) is better
