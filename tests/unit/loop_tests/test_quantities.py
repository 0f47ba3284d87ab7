"""A quantity in any unit is learned as a standardized one, and everything outside of training speaks its own unit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from cluster.bundle.files import WEIGHTS
from cluster.bundle.signature import TensorSignature, TensorSpec
from cluster.bundle.target import TARGET_UNIT
from cluster.spec.compress import PruneSpec
from cluster.spec.load import validate_spec
from cluster.spec.resolve import ResolvedRun
from cluster.telemetry.events import ListSink
from serve.engines.engine import EngineRequest
from serve.engines.torch import TorchEngine
from tests.unit.data_tests.making import context
from trainers.compress.candidate import Candidate, TrainingTask
from trainers.compress.presets import StaticRecipe, cpu_preset
from trainers.compress.proxies import compare_outputs
from trainers.compress.prune.choose import plan_pruning, prune_module
from trainers.compress.prune.cost import count_parameters
from trainers.compress.quantize import convert_fp16, preprocess, quantize_int8_static
from trainers.compress.retraining import Retraining
from trainers.compress.row_wise import quantize_row_wise
from trainers.compress.students import scaled_model
from trainers.data.shards import PreparedData, open_prepared
from trainers.data.stages import check_data, prepare_data
from trainers.evaluate.metrics import regression_metrics
from trainers.export.bfloat16 import convert_bf16
from trainers.export.float_graph import write_float_graph
from trainers.export.session import open_session, run_batches
from trainers.loop import FitRequest, FitResult, fit
from trainers.loop.result import write_result
from trainers.models.weights import load_module


@dataclass(frozen=True)
class Trained:
    """A default run up to its trained network."""

    resolved: ResolvedRun
    prepared: PreparedData
    result: FitResult
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "train"


def features(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 8))


def abalone(rows: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """Rings × 1000 + 200000: whole rings, skewed, with as much noise as the shells have."""
    rng, x = np.random.default_rng(1), features(rows, 2)
    growth = 2.2 + x @ np.array([0.25, -0.1, 0.08, 0.05, 0.0, 0.0, 0.0, 0.0]) + 0.1 * np.sin(2 * x[:, 4])
    rings = np.round(np.exp(growth + 0.2 * rng.normal(size=rows)).clip(1, 29))
    return x, rings * 1000 + 200_000


def prices(rows: int = 1_500) -> tuple[np.ndarray, np.ndarray]:
    """A log-normal price with a heavy right tail and no outlier."""
    rng, x = np.random.default_rng(3), features(rows, 4)
    level = x @ np.array([0.9, -0.5, 0.4, 0.3, 0.2, 0.0, 0.0, 0.0]) + 0.3 * np.abs(x[:, 5])
    return x, np.exp(11.5 + 0.8 * level + 0.25 * rng.normal(size=rows))


def default_run(folder: Path, x: np.ndarray, y: np.ndarray, **data: str) -> Trained:
    """Nothing but `data` in the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"c{i}" for i in range(x.shape[1])]
    lines = [",".join([*names, "y"]), *(",".join(f"{v:.6g}" for v in (*row, t)) for row, t in zip(x, y, strict=True))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    source = {"kind": "csv", "path": str(folder / "t.csv")}
    spec = validate_spec(
        {"version": 1, "data": {"source": source, "target": "y", "task": "regression", **data}, "train": {"workers": 1}}
    )
    resolved = check_data(context(folder, spec)).resolved
    assert resolved is not None
    (folder / "prepare").mkdir()
    done = prepare_data(context(folder / "prepare", spec, "prepare", resolved))
    resolved = done.facts.changes(resolved, done.details)
    request = FitRequest(
        train=resolved.spec.train, batch=resolved.batch, model=resolved.spec.model, seed=resolved.spec.seed,
        prepared=folder / "prepare", stage="train", checkpoints=None,
    )  # fmt: skip
    result = fit(request, sink=ListSink())
    (folder / "train").mkdir()
    write_result(folder / "train", result)
    return Trained(resolved, open_prepared(folder / "prepare"), result, folder)


def r2_of(trained: Trained, graph: Path, split: str = "test") -> float:
    rows = trained.prepared.splits[split]
    answers = run_batches(open_session(graph), dict(rows.inputs))["logits"]
    return regression_metrics(answers, np.asarray(rows.targets))["metrics"]["r2"]


def trees_r2(trained: Trained) -> float:
    """Boosted trees on the same features and rows."""
    train, test = trained.prepared.splits["train"], trained.prepared.splits["test"]
    peer = HistGradientBoostingRegressor(random_state=0).fit(train.inputs["features"], train.targets)
    return regression_metrics(peer.predict(test.inputs["features"]), np.asarray(test.targets))["metrics"]["r2"]


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return default_run(tmp_path_factory.mktemp("rings"), *abalone())


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return default_run(tmp_path_factory.mktemp("prices"), *prices())


@pytest.fixture(scope="module", params=["rings", "priced"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    trained = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(f"graph-{request.param}")
    parity = write_float_graph(trained.resolved.spec, trained.prepared, trained.weights, folder)["parity"]
    assert parity["logits"]["max_abs_diff"] < 1e-4 * trained.prepared.splits["train"].targets.std()
    return trained, folder / "model.onnx"


def test_the_default_run_reaches_boosted_trees(exported: tuple[Trained, Path]) -> None:
    trained, graph = exported
    assert r2_of(trained, graph) > trees_r2(trained) - 0.05
    kept = trained.result.metrics
    own = regression_metrics(
        run_batches(open_session(graph), dict(trained.prepared.splits["validation"].inputs))["logits"],
        np.asarray(trained.prepared.splits["validation"].targets),
    )["metrics"]
    assert kept["validation.rmse"] == pytest.approx(own["rmse"], rel=1e-4), "metrics speak the target's own unit"
    assert 0.1 < kept["train.loss"] / kept["validation.loss"] < 10, "and so do the curves"


def test_a_heavy_tail_is_learned_in_logarithms_and_the_resolved_run_says_why(priced: Trained) -> None:
    assert priced.resolved.spec.data.target_transform == "log1p"
    reason = next(one.reason for one in priced.resolved.reasons if one.path == "data.target_transform")
    assert "RMSE of" in reason
    assert r2_of_weights(priced) > 0.8


def r2_of_weights(trained: Trained) -> float:
    """Of the module that serving rebuilds from a bundle's weights."""
    manifest = {"model": trained.resolved.spec.model.model_dump(mode="json"), "target": trained.prepared.target}
    output = TensorSpec(name="logits", datatype="FP32", shape=(-1, 1))
    signature = TensorSignature(inputs=trained.prepared.inputs, outputs=(output,))
    engine = TorchEngine(EngineRequest(trained.weights / WEIGHTS, signature, max_rows=512, **manifest))
    test = trained.prepared.splits["test"]
    answers = engine.run({name: np.asarray(array) for name, array in test.inputs.items()})["logits"]
    return regression_metrics(answers, np.asarray(test.targets))["metrics"]["r2"]


def test_low_precision_leaves_the_way_back_into_the_unit_in_float(
    exported: tuple[Trained, Path], tmp_path: Path
) -> None:
    trained, graph = exported
    r2 = r2_of(trained, graph)
    preprocess(graph, tmp_path / "prepared.onnx")
    calibration = dict(trained.prepared.splits["calibration"].inputs)
    recipe = StaticRecipe(cpu_preset())
    ranges = tmp_path / "ranges.json"
    quantize_int8_static(tmp_path / "prepared.onnx", tmp_path / "static.onnx", calibration, recipe, ranges=ranges)
    quantize_row_wise(tmp_path / "prepared.onnx", tmp_path / "dynamic.onnx", cpu_preset())
    convert_fp16(graph, tmp_path / "fp16.onnx")
    for name, loss in (("static", 0.1), ("dynamic", 0.03), ("fp16", 0.01)):  # few calibration rows end ranges early
        assert r2_of(trained, tmp_path / f"{name}.onnx") > r2 - loss, name
    convert_bf16(graph, tmp_path / "bf16.onnx")
    for name in ("static", "dynamic", "fp16", "bf16"):
        assert_unit_in_float(onnx.load(str(tmp_path / f"{name}.onnx")))


def assert_unit_in_float(model: onnx.ModelProto) -> None:
    """From the first node of the way back to the output there is no quantization and no cast."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    unit = [node for node in model.graph.node if node.name.startswith(TARGET_UNIT)]
    assert unit
    made = {output for node in unit for output in node.output}
    assert {kinds.get(name, onnx.TensorProto.FLOAT) for node in unit for name in node.input if name} <= {
        onnx.TensorProto.FLOAT
    }
    readers = [node for node in model.graph.node if made & set(node.input) and node not in unit]
    assert readers == [], "the last of these nodes gives the output"


def test_a_student_learns_the_teachers_learned_values_and_answers_in_the_unit(priced: Trained, tmp_path: Path) -> None:
    spec = validate_spec({**priced.resolved.spec.model_dump(mode="json"), "compress": {"recipes": ["distill"]}})
    retraining = Retraining(
        resolved=priced.resolved.model_copy(update={"spec": spec}), prepared=priced.prepared, weights=priced.weights,
        folder=tmp_path, events=None, sink=ListSink(), stage="compress",
    )  # fmt: skip
    arguments = retraining.arguments(scaled_model(spec.model, 0.5))
    task = TrainingTask(arguments, 5, spec.train.optimizer.learning_rate, distill=True)
    made = retraining.make(Candidate("student", "distill", task=task))
    assert r2_of(priced, made.file) > 0.5
    (shards,) = tmp_path.glob("teacher-*")
    taught = np.load(shards / "train" / "inputs.teacher_logits.npy")
    assert abs(taught.mean()) < 0.2, "standardized, as what the network learns"
    assert 0.7 < taught.std() < 1.2


def test_pruning_cuts_a_network_that_answers_in_a_unit(priced: Trained) -> None:
    module = load_module(
        priced.resolved.spec.model, priced.prepared.inputs, 1, priced.weights, priced.prepared.target
    )  # fmt: skip
    example = (torch.from_numpy(np.array(priced.prepared.splits["gate"].inputs["features"][:4])),)
    before = count_parameters(module)
    plan = plan_pruning(module, example, 0.5, PruneSpec())
    prune_module(module, plan, example)
    assert count_parameters(module) < before
    assert float(module(*example).detach().min()) >= 0, "a price is no logarithm, and never negative"


def test_the_first_look_at_a_candidate_ignores_how_far_a_quantity_lies_from_zero() -> None:
    rng = np.random.default_rng(0)
    parent = rng.normal(0.0, 3_000.0, (400, 1))
    noise = rng.normal(0.0, 3_000.0, (400, 1))
    near = compare_outputs(parent, parent + noise, classification=False)
    far = compare_outputs(parent + 200_000, parent + 200_000 + noise, classification=False)
    assert far.sqnr_db == pytest.approx(near.sqnr_db, abs=0.5)
    assert abs(far.sqnr_db) < 1
