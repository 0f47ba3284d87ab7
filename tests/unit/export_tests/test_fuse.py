"""Standardizing, probabilities and class names inside the graph: the same answers, done once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from cluster.bundle.transforms import ArrayTransforms, Pixels, Standardize
from cluster.errors import ModelError
from cluster.spec.export import FusedPart, ParitySpec
from tests.bundles import linear_graph
from trainers.export.fuse import LABEL, PROBABILITIES, Fusion, fuse_graph, plan_fusion
from trainers.export.session import open_session, run_batches

CLASSES = ("cat", "dog", "emu")
TRANSFORMS = ArrayTransforms(
    name="x",
    item_shape=(3, 4, 4),
    steps=(Standardize(shape=(3, 1, 1), mean=(120.0, 110.0, 90.0), deviation=(60.0, 55.0, 50.0)),),
    pixels=Pixels(channels=3, height=4, width=4, white=255.0),
)
RAW = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4)).astype(np.float32)
PREPARED = TRANSFORMS.apply(RAW)
ALL: tuple[FusedPart, ...] = ("normalize", "softmax", "labels")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    onnx.save(linear_graph((3, 4, 4), 3), str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


def fused(graph: Path, parts: tuple[FusedPart, ...]) -> Fusion:
    fusion = plan_fusion(parts, classes=CLASSES, transforms=TRANSFORMS)
    assert fusion is not None
    fuse_graph(graph, fusion, PREPARED, ParitySpec(), exact=True)
    return fusion


def test_the_fused_graph_takes_raw_values_and_answers_with_probabilities_and_names(graph: Path) -> None:
    logits = run_batches(open_session(graph), PREPARED)["logits"]
    fusion = fused(graph, ALL)
    answers = run_batches(open_session(graph), {"x": RAW})
    assert list(answers) == ["logits", PROBABILITIES, LABEL]
    np.testing.assert_allclose(answers["logits"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answers[PROBABILITIES].sum(1), 1.0, rtol=1e-6)
    assert list(answers[LABEL]) == [CLASSES[i] for i in logits.argmax(1)]
    assert [(spec.name, spec.datatype, spec.shape) for spec in fusion.outputs] == [
        (PROBABILITIES, "FP32", (-1, 3)),
        (LABEL, "BYTES", (-1,)),
    ]


def test_what_is_left_to_the_endpoint_does_not_standardize_again(graph: Path) -> None:
    left = fused(graph, ("normalize",)).served_transforms()
    assert left is not None
    np.testing.assert_array_equal(left.apply(RAW)["x"], RAW)
    assert left.pixels == TRANSFORMS.pixels
    assert fused(graph, ("softmax",)).served_transforms() is None


def test_undoing_the_transforms_gives_the_raw_values_back() -> None:
    np.testing.assert_allclose(TRANSFORMS.undo(PREPARED)["x"], RAW, rtol=1e-6, atol=1e-4)


def test_a_graph_with_qdq_pairs_is_fused_around_and_not_inside(graph: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Rows(CalibrationDataReader):
        left = [PREPARED]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    target = graph.with_name("q.onnx")
    quantize_static(str(graph), str(target), Rows())
    inside = [node.op_type for node in onnx.load(str(target)).graph.node]
    fusion = plan_fusion(ALL, classes=CLASSES, transforms=TRANSFORMS)
    assert fusion is not None
    fuse_graph(target, fusion, PREPARED, ParitySpec(), exact=False)
    assert [node.op_type for node in onnx.load(str(target)).graph.node] == [
        "Sub",
        "Div",
        *inside,
        "Softmax",
        "ArgMax",
        "Gather",
    ]


def test_a_fused_file_that_answers_otherwise_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = TRANSFORMS.model_copy(
        update={"steps": (Standardize(shape=(1,), mean=(0.0,), deviation=(2.0,)),)},
    )
    monkeypatch.setattr(Fusion, "raw", lambda self, rows: {"x": RAW})
    with pytest.raises(ModelError, match="its logits differ from the unfused file's"):
        fuse_graph(graph, Fusion(("normalize",), CLASSES, wrong), PREPARED, ParitySpec(), exact=True)


def test_what_cannot_be_fused_is_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="encoding columns is not"):
        plan_fusion(("normalize",), classes=CLASSES, transforms=None)
    with pytest.raises(ModelError, match="the task is regression"):
        plan_fusion(("softmax",), classes=(), transforms=TRANSFORMS)
    assert plan_fusion((), classes=(), transforms=None) is None
