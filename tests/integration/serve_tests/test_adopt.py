"""A model of Triton's repository becomes a bundle by one command, and the endpoint gives its answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from serve.adopt import main
from tests.bundles import linear_graph
from tests.contract.protocol_tests.conftest import server_process


def test_a_model_trained_elsewhere_is_served_with_its_own_answers(tmp_path: Path) -> None:
    model = tmp_path / "1" / "model.onnx"
    model.parent.mkdir()
    onnx.save(linear_graph((4,), 3), model)
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    words = [str(model), str(tmp_path / "bundle"), "--name", "pets", "--labels", str(tmp_path / "labels.txt")]
    assert main(words) == 0
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    (expected,) = onnxruntime.InferenceSession(str(model)).run(None, {"x": x})
    with server_process(tmp_path / "bundle") as address:
        body = {"inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": x.ravel().tolist()}]}
        answer = httpx.post(f"http://{address}/v2/models/pets/infer", json=body, trust_env=False).json()
        rows = httpx.post(f"http://{address}/predict", json={"rows": x.tolist()}, trust_env=False).json()
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected.ravel(), rtol=1e-5)
    labels = ["cat", "dog", "bird"]
    assert [row["label"] for row in rows["predictions"]] == [labels[i] for i in expected.argmax(axis=1)]


def test_what_cannot_be_served_is_told_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(helper.make_model(fixed, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"no graph")
    onnx.save(linear_graph((4,), 3), tmp_path / "c.onnx")
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    for name, more, words in (
        ("a.onnx", [], "dynamic batch axis"),
        ("b.onnx", [], "ONNX Runtime"),
        ("c.onnx", ["--labels", str(tmp_path / "labels.txt")], "2 labels"),
        ("absent.onnx", [], "No such file"),
    ):
        assert main([str(tmp_path / name), str(tmp_path / "bundle"), *more]) != 0
        assert words in capsys.readouterr().err
        assert not (tmp_path / "bundle").exists()
