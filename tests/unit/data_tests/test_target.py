"""A quantity's transform: fitted on training rows alone, undone exactly, chosen in the target's own unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from sklearn.preprocessing import PowerTransformer

from cluster.bundle.target import TargetTransform
from cluster.errors import DataError, SpecError
from cluster.telemetry.events import ListSink
from tests.unit.data_tests.making import context, prepare, run_spec
from tests.unit.data_tests.test_past_memory import SPLIT, write
from trainers.data.fit.target import fit_target
from trainers.data.shards import DATASET, Split, open_prepared
from trainers.data.stages import check_data, prepare_data


def split_of(targets: np.ndarray, seed: int = 0) -> Split:
    features = np.random.default_rng(seed).normal(size=(len(targets), 3)).astype(np.float32)
    return Split({"features": features}, targets.astype(np.float32))


def skewed(rows: int = 600, seed: int = 0) -> tuple[Split, Split]:
    """Training and validation rows of a price that is log-linear in its features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    y = np.exp(11 + x @ np.array([0.8, -0.5, 0.3]) + 0.2 * rng.normal(size=rows)).astype(np.float32)
    at = rows * 3 // 4
    return Split({"features": x[:at]}, y[:at]), Split({"features": x[at:]}, y[at:])


@pytest.mark.parametrize("kind", ["standard", "log1p", "yeo_johnson"])
def test_training_targets_become_standard_and_come_back_in_float32(kind: str) -> None:
    rng = np.random.default_rng(0)
    own = 200_000 + 4_000 * rng.gamma(2.0, 1.0, 2_000)
    fitted = fit_target(kind, split_of(own), None).transform
    assert fitted is not None
    targets = own.astype(np.float32)
    learned = fitted.to_learned(torch.from_numpy(targets), torch)
    assert learned.dtype == torch.float32
    assert float(learned.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(learned.std()) == pytest.approx(1.0, abs=1e-2)
    back = fitted.to_unit(learned, torch).numpy()
    assert np.abs(back - targets).max() < 1e-3 * own.std()
    assert np.allclose(fitted.to_learned(own), learned.numpy(), atol=1e-3), "NumPy and torch are one implementation"


def test_yeo_johnson_is_scikit_learns() -> None:
    values = np.random.default_rng(1).gamma(2.0, 1.0, 500)
    fitted = fit_target("yeo_johnson", split_of(values), None).transform
    assert fitted is not None
    inner = ((values.astype(np.float32) - fitted.center) / fitted.scale)[:, None].astype(np.float64)
    peer = PowerTransformer().fit(inner)
    assert fitted.power == pytest.approx(peer.lambdas_[0], abs=0.02)
    bent = stats.yeojohnson(inner[:, 0], lmbda=fitted.power)
    assert np.allclose(fitted.bent(values.astype(np.float32).astype(np.float64)), bent, atol=1e-6)


@pytest.mark.parametrize("kind", ["log1p", "yeo_johnson"])
@pytest.mark.parametrize("wild", [-1e6, 1e6])
def test_no_answer_is_infinite_or_far_beyond_the_training_targets(kind: str, wild: float) -> None:
    train, _ = skewed()
    fitted = fit_target(kind, train, None).transform
    assert fitted is not None
    reach = 0.06 * float(np.ptp(train.targets))
    answer = float(fitted.to_unit(torch.tensor([wild]), torch))
    assert train.targets.min() - reach <= answer <= train.targets.max() + reach
    if kind == "log1p":
        assert answer >= 0, "a quantity that never was negative stays so"


def test_only_training_rows_are_seen() -> None:
    train, validation = skewed()
    moved = Split(dict(validation.inputs), np.asarray(validation.targets) * 50)
    here, there = (fit_target("standard", train, other).transform for other in (validation, moved))
    assert here == there
    own = np.asarray(train.targets, np.float64)
    assert here == TargetTransform(kind="standard", center=own.mean(), scale=own.std(), spread=own.std())


def test_a_log_normal_price_is_learned_in_logarithms_and_the_figures_are_said() -> None:
    found = fit_target("auto", *skewed())
    assert found.kind == "log1p"
    assert set(found.validation_rmse) == {"standard", "log1p", "yeo_johnson"}
    assert found.validation_rmse["log1p"] < 0.95 * found.validation_rmse["standard"]
    assert f"{found.validation_rmse['log1p']:.5g} with log1p" in found.reason


def test_what_is_no_better_than_standardizing_is_not_taken() -> None:
    rng = np.random.default_rng(5)
    symmetric = fit_target("auto", split_of(rng.normal(size=400)), split_of(rng.normal(size=100), 1))
    assert (symmetric.kind, symmetric.validation_rmse) == ("standard", {})
    assert "skewness" in symmetric.reason
    noise = fit_target("auto", split_of(rng.exponential(size=400)), split_of(rng.exponential(size=100), 1))
    assert noise.kind == "standard", "skewed, but its features say nothing"
    few = fit_target("auto", split_of(rng.exponential(size=400)), split_of(rng.exponential(size=5), 1))
    assert "5 validation rows are too few" in few.reason


def test_log1p_of_negative_targets_is_refused() -> None:
    with pytest.raises(DataError, match=r"smallest training value is -3.*yeo_johnson"):
        fit_target("log1p", split_of(np.array([-3.0, 2.0, 5.0])), None)


def quantities(rows: int = 9_000) -> pa.Table:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=rows), rng.normal(size=rows)
    return pa.table({"a": a, "b": b, "y": np.exp(9 + 1.0 * a - 0.7 * b + 0.2 * rng.normal(size=rows))})


def test_past_memory_and_in_memory_have_one_transform(tmp_path: Path) -> None:
    source = write(tmp_path, "parquet", quantities())
    facts = []
    for name, more in (("memory", {}), ("past", {"memory_bytes": 1})):
        prepare(tmp_path / name, run_spec(source, target="y", split=SPLIT, encode={"number": "standard"}, **more))
        facts.append(open_prepared(tmp_path / name))
    here, there = facts
    assert here.target is not None
    assert here.target == there.target
    assert here.target.kind == "log1p"
    assert np.asarray(here.splits["train"].targets).max() > 10_000, "shards hold the target in its own unit"


def test_what_prepare_chose_is_part_of_the_resolved_run_and_is_said(tmp_path: Path) -> None:
    source = write(tmp_path, "parquet", quantities(1_200))
    spec = run_spec(source, target="y")
    resolved = check_data(context(tmp_path / "r", spec)).resolved
    made = context(tmp_path / "r", spec, "prepare", resolved)
    result = prepare_data(made)
    assert result.facts.changes(resolved, result.details).spec.data.target_transform == "log1p"
    assert result.facts.to_json()["found"] == {"data.target_transform": "log1p"}
    assert isinstance(made.events, ListSink)
    assert any("learned with transform 'log1p'" in event.text for event in made.events.events if hasattr(event, "text"))


def test_prepared_folders_from_before_learn_the_values_as_they_are(tmp_path: Path) -> None:
    source = write(tmp_path, "parquet", quantities(400))
    prepare(tmp_path / "p", run_spec(source, target="y"))
    raw: dict[str, Any] = json.loads((tmp_path / "p" / DATASET).read_text())
    del raw["facts"]["target"]
    (tmp_path / "p" / DATASET).write_text(json.dumps(raw))
    assert open_prepared(tmp_path / "p").target is None


def test_classes_are_not_transformed(tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(200.0) % 17, "y": ["yes", "no"] * 100})
    source = write(tmp_path, "parquet", table)
    with pytest.raises(SpecError, match=r"target_transform is 'log1p' and the task is classification"):
        check_data(context(tmp_path / "r", run_spec(source, target="y", target_transform="log1p")))
    resolved = check_data(context(tmp_path / "s", run_spec(source, target="y"))).resolved
    assert resolved is not None
    assert resolved.spec.data.target_transform == "none"


def test_what_counts_as_no_difference_follows_the_unit() -> None:
    own = 200_000 + 3_000 * np.random.default_rng(0).normal(size=500)
    fitted = fit_target("standard", split_of(own), None).transform
    assert fitted is not None
    allowed = fitted.allowed(own, 1e-4, 1e-3)
    assert allowed.max() < 0.01 * own.std()
    assert allowed.min() > 0.0156, "float32 rounds that far"


def test_features_of_images_and_tokens_are_few_enough_to_choose_by() -> None:
    """A price by the mean brightness of an image, and by how often a token occurs."""
    rng = np.random.default_rng(0)
    images = rng.normal(rng.normal(size=(500, 1, 1, 1)), 0.2, (500, 3, 12, 12)).astype(np.float32)
    tokens = rng.integers(0, 5, (500, 30))
    often = (tokens == 3).sum(axis=1)
    for name, array, level in (("image", images, images.mean(axis=(1, 2, 3))), ("ids", tokens, often / 3)):
        y = np.exp(5 + level).astype(np.float32)
        train, validation = Split({name: array[:400]}, y[:400]), Split({name: array[400:]}, y[400:])
        assert fit_target("auto", train, validation).kind == "log1p", name
