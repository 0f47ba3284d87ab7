"""Which variants' requests are joined: what the manifest says, and what an older bundle shows when it is loaded."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import QuantType, quantize_dynamic

from cluster.bundle import Variant, finish_bundle, read_manifest, write_bundle
from cluster.spec.serve import BatchingSpec, ServeSpec
from serve.config import EndpointConfig, VersionConfig
from serve.models.loading import Loaded, load_engine
from serve.models.model import ServedModel
from serve.protocol.codec import InferRequest
from serve.protocol.limits import Limits
from tests.bundles import make_bundle, mlp_graph

WIDTH = 20


def bundle_of(folder: Path, graph: onnx.ModelProto, **variant: Any) -> Path:
    """A bundle whose only variant is `graph`, described by these fields."""
    make_bundle(folder, graph=graph, item_shape=(WIDTH,), num_outputs=3)
    old = read_manifest(folder)
    with np.load(folder / "sample.npz", allow_pickle=False) as arrays:
        x = arrays["inputs/x"]
    entry = Variant.model_validate({"name": "fp32", "precision": "fp32", "file": "model.onnx", **variant})
    with write_bundle(folder) as partial:
        onnx.save(graph, partial / "model.onnx")
        (logits,) = InferenceSession(str(partial / "model.onnx"), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )
        np.savez(partial / "sample.npz", **{"inputs/x": x, f"outputs/{entry.name}/logits": logits})
        finish_bundle(partial, old.model_copy(update={"variants": (entry,), "default_variant": entry.name}))
    return folder


@pytest.fixture(scope="module")
def whole_batch_graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """`int8_dynamic` of older versions: ranges of the whole batch."""
    folder = tmp_path_factory.mktemp("old")
    onnx.save(mlp_graph(WIDTH, 64, 3), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "old.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return onnx.load(folder / "old.onnx")


def batch_softmax_graph() -> onnx.ModelProto:
    """A network that somebody made with the softmax over the wrong axis."""
    model = mlp_graph(WIDTH, 8, 3)
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"], axis=0))
    return model


def load(folder: Path, rows: int = 16) -> tuple[EndpointConfig, Loaded]:
    version = VersionConfig(version="1", bundle=str(folder))
    batching = BatchingSpec(max_rows=rows, max_wait_ms=50.0)
    config = EndpointConfig(name="m", versions=(version,), default_version="1", spec=ServeSpec(batching=batching))
    return config, load_engine(config, version)


DYNAMIC = {"name": "int8_dynamic", "recipe": "int8_dynamic", "precision": "int8"}


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (DYNAMIC, "recipe int8_dynamic of a bundle without rows_independent"),
        ({"name": "theirs", "precision": "int8"}, "with outliers a row's answer"),  # found by asking
        ({"rows_independent": False}, "its manifest says so"),
    ],
)
def test_a_variant_whose_rows_influence_one_another_is_served_one_request_at_a_time(
    tmp_path: Path, whole_batch_graph: onnx.ModelProto, caplog: Any, variant: dict[str, Any], words: str
) -> None:
    folder = bundle_of(tmp_path / "bundle", whole_batch_graph, **variant)
    with caplog.at_level(logging.WARNING, logger="serve.models.loading"):
        config, loaded = load(folder)
    assert words in caplog.text
    assert (loaded.policy.join, loaded.policy.max_wait_s) == (False, 0.0)
    alone, together, told = asyncio.run(ask(config, loaded))
    np.testing.assert_array_equal(alone, together)
    assert "dynamic_batching" not in told
    assert told["parameters"]["rows_independent"] == {"string_value": "false"}


@pytest.mark.parametrize("variant", [{}, {"rows_independent": True}, {**DYNAMIC, "rows_independent": True}])
def test_independent_rows_are_joined(tmp_path: Path, variant: dict[str, Any], caplog: Any) -> None:
    config, loaded = load(bundle_of(tmp_path / "bundle", mlp_graph(WIDTH, 64, 3), **variant))
    assert (loaded.policy.join, loaded.policy.max_wait_s) == (True, 0.05)
    assert "change one another's answers" not in caplog.text
    alone, together, told = asyncio.run(ask(config, loaded))
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert told["dynamic_batching"]["max_queue_delay_microseconds"] == 50_000
    assert told["parameters"]["rows_independent"] == {"string_value": "true"}


def test_a_float_graph_that_looks_across_the_batch_is_found(tmp_path: Path) -> None:
    folder = bundle_of(tmp_path / "bundle", batch_softmax_graph())
    _, loaded = load(folder)
    assert not loaded.policy.join
    loaded.engine.close()
    _, single = load(folder, rows=1)  # an engine for one row joins nothing in any case, and is not asked for more
    assert single.policy.max_rows == 1
    single.engine.close()


async def ask(config: EndpointConfig, loaded: Loaded) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A row's answer alone, the same row's beside a stranger's outliers, and the configuration that clients read."""
    model = ServedModel(config, config.versions[0], loaded, Limits())
    row = np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)
    try:
        alone = await model.infer(InferRequest(inputs={"x": row}))
        both = [model.infer(InferRequest(inputs={"x": rows})) for rows in (row * 1e4, row, row * -1e4)]
        answers = await asyncio.wait_for(asyncio.gather(*both), 20)
        return alone.outputs["logits"], answers[1].outputs["logits"], model.configuration()
    finally:
        await model.retire()
