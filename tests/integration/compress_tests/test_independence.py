"""A row's answer is the same alone, in any company and in any padding: every recipe, on every kind of network here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from cluster.bundle.signature import TensorSpec
from cluster.spec.compress import CompressSpec
from cluster.spec.model import TransformerSpec
from cluster.telemetry.events import ListSink
from tests.bundles import mlp_graph
from trainers.compress.candidate import Candidate, GraphTask
from trainers.compress.cpu import has_vnni
from trainers.compress.graph_recipes import MODEL, run_graph_recipe
from trainers.compress.measure import measure_baseline
from trainers.compress.presets import cpu_preset, tensorrt_preset
from trainers.compress.quantize import preprocess
from trainers.compress.recipe_search import RecipeSearch
from trainers.compress.row_wise import quantize_row_wise
from trainers.compress.rows import rows_of
from trainers.data.shards import Split, open_prepared, write_prepared
from trainers.export.independence import float_answers, graph_independence
from trainers.export.onnx import export_onnx
from trainers.export.session import open_session, run_batches
from trainers.models import build_model

RECIPES = (
    "int8_dynamic",
    "int8_static_per_tensor",
    "int8_static",
    "int8_weight_only",
    "fp16",
    "int8_static_percentile",
    "int8_static_entropy",
    "int8_static_excluded",
)
WORDS, WIDTH = 200, 32


@pytest.fixture
def search_on(tmp_path: Path) -> Callable[[Path, dict[str, np.ndarray], np.ndarray], RecipeSearch]:
    """Every graph recipe on a graph, with these rows for calibration and gate."""

    def run(graph: Path, inputs: dict[str, np.ndarray], targets: np.ndarray, recipes: Any = RECIPES) -> RecipeSearch:
        spec = CompressSpec(recipes=recipes, on_inconclusive="accept_point_estimate", proxy={"min_agreement": 0.0})
        kinds = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}
        signature = tuple(
            TensorSpec(name=name, datatype=kinds[array.dtype], shape=(-1, *array.shape[1:]))
            for name, array in inputs.items()
        )
        split = Split(inputs, targets)
        classes = tuple(str(label) for label in np.unique(targets))
        splits = dict.fromkeys(("train", "calibration", "gate"), split)
        write_prepared(tmp_path / "rows", splits, task="classification", classes=classes, inputs=signature)
        rows = rows_of(open_prepared(tmp_path / "rows"))
        search = RecipeSearch(
            spec, rows, tmp_path / "rows", measure_baseline(graph, rows), tmp_path / "trials", ListSink()
        )
        search.exhaustive = True
        search.try_graph_recipes(search.baseline)
        return search

    return run


def assert_independent(search: RecipeSearch, measured_ones: int) -> None:
    assert search.baseline.independence is not None
    assert search.baseline.independence.independent, search.baseline.independence.sentence()
    measured = {one.name: one.independence for one in search.candidates if one.independence}
    assert len(measured) == measured_ones, {one.name: one.reason for one in search.candidates}
    assert {name: found.sentence() for name, found in measured.items() if not found.independent} == {}
    assert all(one.variant().rows_independent is True for one in search.candidates if one.accepted)


@pytest.fixture(scope="module")
def texts() -> tuple[np.ndarray, np.ndarray]:
    """(96, 24) token ids of texts of 1 to 24 words, and labels."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, WORDS, (96, 24))
    tokens[np.arange(24)[None, :] >= rng.integers(1, 25, 96)[:, None]] = 0
    return tokens, (tokens == 7).any(axis=1).astype(np.int64)


@pytest.fixture(scope="module")
def text_graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """An untrained transformer for texts of one length: every activation is as wide as in a trained one."""

    def make(length: int) -> Path:
        torch.manual_seed(3)
        inputs = (TensorSpec(name="tokens", datatype="INT64", shape=(-1, length)),)
        spec = TransformerSpec(family="transformer", width=WIDTH, layers=1, heads=2, vocabulary=WORDS)
        module = build_model(spec, inputs, 2).eval()
        with torch.no_grad():
            module.texts[0].tokens.weight[1:] *= 50  # type: ignore[index,union-attr]
        path = tmp_path_factory.mktemp("text") / "text.onnx"
        export_onnx(module, inputs, {"tokens": np.ones((3, length), np.int64)}, path, opset=20)
        return path

    return make


def whole_batch_form(graph: Path, folder: Path) -> Path:
    """What `int8_dynamic` was before: ranges of the whole batch, by ONNX Runtime's own quantizer."""
    kinds = {"per_channel": True, "weight_type": QuantType.QInt8, "reduce_range": not has_vnni()}
    preprocess(graph, folder / "prepared.onnx")
    quantize_dynamic(folder / "prepared.onnx", folder / "old.onnx", **kinds)
    return folder / "old.onnx"


def exact_session(graph: Path) -> onnxruntime.InferenceSession:
    """Sums of 8-bit products do not saturate, also without VNNI (onnxruntime_session_options_config_keys.h)."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def test_every_recipe_on_a_convolutional_network(make_search: Any, digits_graph: Path) -> None:
    search = make_search(recipes=RECIPES, budget={"max_drop": 0.2}, calibration_rows=64)
    search.exhaustive = True
    search.try_graph_recipes(search.baseline)
    assert_independent(search, len(RECIPES))


@pytest.mark.parametrize("length", [8, 24])
def test_every_recipe_on_a_transformer_of_each_length(
    search_on: Any, text_graph: Callable[[int], Path], texts: Any, length: int
) -> None:
    tokens, targets = texts
    search = search_on(text_graph(length), {"tokens": tokens[:, :length]}, targets, RECIPES[:5])
    assert_independent(search, 5)


def test_every_recipe_on_a_network_of_flat_rows(search_on: Any, tmp_path: Path) -> None:
    onnx.save(mlp_graph(20, 64, 3), tmp_path / "mlp.onnx")
    x = np.random.default_rng(0).standard_normal((96, 20)).astype(np.float32)
    targets = run_batches(open_session(tmp_path / "mlp.onnx"), {"x": x})["logits"].argmax(1)
    assert_independent(search_on(tmp_path / "mlp.onnx", {"x": x}, targets, RECIPES[:5]), 5)


def test_a_range_of_the_whole_batch_is_rejected_with_what_it_does(
    search_on: Any, text_graph: Callable[[int], Path], texts: Any, tmp_path: Path
) -> None:
    tokens, targets = texts
    graph = text_graph(8)
    search = search_on(graph, {"tokens": tokens[:, :8]}, targets, ("int8_weight_only",))
    old = whole_batch_form(graph, tmp_path)
    outputs = run_batches(open_session(old), {"tokens": tokens[:, :8]})["logits"]
    made = Candidate("old", "int8_dynamic", precision="int8").made(old)
    candidate: Candidate = search.decide(made, outputs)
    assert not candidate.accepted
    assert candidate.reason.startswith("rows change one another's answers: in a batch of ")
    assert candidate.independence is not None
    assert candidate.independence.change > 20 * candidate.independence.allowed
    assert candidate.to_dict()["independence"]["independent"] is False
    assert candidate.cost is None  # nobody waits for the timing of what is refused


def test_an_outlier_beside_a_row_moved_the_old_form_and_not_the_new(tmp_path: Path) -> None:
    onnx.save(mlp_graph(20, 64, 3), tmp_path / "mlp.onnx")
    old, new = whole_batch_form(tmp_path / "mlp.onnx", tmp_path), tmp_path / "new.onnx"
    assert quantize_row_wise(tmp_path / "prepared.onnx", new, cpu_preset()) == 2  # the head of 3 outputs stays float
    x = np.random.default_rng(0).standard_normal((4, 20)).astype(np.float32)
    x[3] *= 1e3
    wanted = run_batches(open_session(tmp_path / "mlp.onnx"), {"x": x})["logits"]
    moved = {}
    for path in (old, new):
        together, alone = (run_batches(open_session(path), {"x": rows})["logits"][:3] for rows in (x, x[:3]))
        moved[path.name] = float(np.abs(together - alone).max())
        np.testing.assert_allclose(alone, wanted[:3], atol=0.1)
    assert moved["old.onnx"] > 0.3
    assert moved["new.onnx"] < 1e-6


def test_rows_that_influence_one_another_in_float_are_known_and_never_joined(search_on: Any, tmp_path: Path) -> None:
    """A network that subtracts the batch's mean: no candidate is accepted, and the float variant says so."""
    from trainers.compress.evidence import compression_facts

    model = mlp_graph(20, 64, 3)
    axes = numpy_helper.from_array(np.array([0]), "axes")
    model.graph.initializer.append(axes)
    mean = [helper.make_node("ReduceMean", ["x", "axes"], ["mean"]), helper.make_node("Sub", ["x", "mean"], ["own"])]
    model.graph.node[0].input[0] = "own"
    nodes = [*mean, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "mean.onnx")
    x = np.random.default_rng(0).standard_normal((96, 20)).astype(np.float32)
    targets = run_batches(open_session(tmp_path / "mean.onnx"), {"x": x})["logits"].argmax(1)
    search = search_on(tmp_path / "mean.onnx", {"x": x}, targets, ("int8_weight_only",))
    assert "as in the float graph" in search.candidates[0].reason
    facts = compression_facts(search, None).to_json()
    assert facts["variants"][0]["rows_independent"] is False
    assert facts["baseline"]["independence"]["change"] > 1e-3


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
@pytest.mark.parametrize("preset", [cpu_preset(vnni=True), cpu_preset(vnni=False), tensorrt_preset()])
def test_the_row_wise_form_is_near_the_float_graph_in_every_opset(tmp_path: Path, opset: int, preset: Any) -> None:
    model = mlp_graph(32, 64, 16)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    onnx.save(model, tmp_path / "mlp.onnx")
    assert quantize_row_wise(tmp_path / "mlp.onnx", tmp_path / "new.onnx", preset) == 3
    made = onnx.load(tmp_path / "new.onnx")
    assert {node.domain for node in made.graph.node} == {""}  # any runtime can read it
    assert not any(t.data_type == TensorProto.FLOAT and len(t.dims) == 2 for t in made.graph.initializer)
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    x[5] = 0.0
    x[6] *= 1e4  # every row has a range of its own
    want = run_batches(open_session(tmp_path / "mlp.onnx"), {"x": x})["logits"]
    if opset == 11 and not (preset.reduce_range or has_vnni()):
        pytest.skip("without VNNI 8-bit sums saturate, and ONNX Runtime 1.32 does not load its exact form of opset 11")
    got = exact_session(tmp_path / "new.onnx").run(["logits"], {"x": x})[0]
    scale = np.maximum(np.abs(want).max(axis=1, keepdims=True), 1.0)
    assert np.abs((got - want) / scale).max() < 0.1
    answers = float_answers(tmp_path / "mlp.onnx", {"x": x})
    assert graph_independence(tmp_path / "new.onnx", {"x": x}, answers).independent


def test_products_of_one_activation_share_its_rounding_and_other_nodes_stay(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["x", "w"], ["b"], transB=1),
        helper.make_node("Gemm", ["x", "w"], ["c"], alpha=0.5),  # scaled products stay in float, and keep their weight
        helper.make_node("Sum", ["a", "b", "c"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "shared", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    assert quantize_row_wise(tmp_path / "g.onnx", tmp_path / "q.onnx", cpu_preset()) == 2
    made = onnx.load(tmp_path / "q.onnx").graph
    assert sum(node.op_type == "QuantizeLinear" for node in made.node) == 1
    assert "w" in {tensor.name for tensor in made.initializer}
    x = np.random.default_rng(1).standard_normal((9, 32)).astype(np.float32)
    want, got = (run_batches(open_session(tmp_path / name), {"x": x})["y"] for name in ("g.onnx", "q.onnx"))
    assert np.abs(got - want).max() < 0.05 * want.std()


def test_a_graph_without_constant_weights_is_stopped_with_the_reason(prepared_digits: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["flat"], axes=[1, 3], keepdims=0),
        helper.make_node("Relu", ["flat"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "none", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 8])],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "none.onnx"
    )
    task = GraphTask("int8_dynamic", tmp_path / "none.onnx", "0", prepared_digits.folder, "0", CompressSpec())
    run_graph_recipe(task, tmp_path)
    assert "no matrix product with constant weights" in (tmp_path / "outcome.json").read_text()
    assert not (tmp_path / MODEL).exists()
