"""Weights beside the file of a large model, through export, parity, bundle and loading (small ones: test_parity.py).

The limit is lowered, so that a few KiB are "too large"; what is read of a really large file is in test_graph_file.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.export import ParitySpec
from trainers.export import onnx as export_module
from trainers.export.bundle import copy_graph
from trainers.export.graph_file import external_files, file_bytes
from trainers.export.onnx import export_onnx
from trainers.export.parity import check_parity
from trainers.export.session import open_session

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 16)),)
ROWS = {"x": np.random.default_rng(0).random((7, 16), dtype=np.float32)}


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


def test_a_model_above_the_limit_keeps_its_weights_beside_the_file(
    tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "EXTERNAL_DATA_BYTES", 1 << 10)
    path = tmp_path / "m.onnx"
    facts = export_onnx(module, INPUTS, ROWS, path, opset=20)
    data = tmp_path / "m.onnx.data"
    assert data.stat().st_size >= 64 * 16 * 4
    assert facts.size_bytes == file_bytes(path) == path.stat().st_size + data.stat().st_size
    assert check_parity(module, path, ROWS, ParitySpec())["batch_sizes"] == [1, 2, 7]
    copied = tmp_path / "bundle"
    copied.mkdir()
    copy_graph(path, copied / "m.onnx")
    assert sorted(one.name for one in copied.iterdir()) == ["m.onnx", "m.onnx.data"]
    data.unlink()
    assert open_session(copied / "m.onnx").run(None, ROWS)[0].shape == (7, 4)
    with pytest.raises(ModelError):
        open_session(path)


def test_a_refused_file_leaves_no_weights_behind(
    tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "EXTERNAL_DATA_BYTES", 1 << 10)

    def refuse(path: Path, *, opset: int) -> None:
        assert external_files(onnx.load(str(path), load_external_data=False))
        raise ModelError("Cannot use it", found="nothing is right")

    monkeypatch.setattr(export_module, "check_file", refuse)
    with pytest.raises(ModelError, match="nothing is right"):
        export_onnx(module, INPUTS, ROWS, tmp_path / "m.onnx", opset=20)
    assert list(tmp_path.iterdir()) == []


def test_two_graphs_whose_weights_have_one_name_live_in_one_folder(tmp_path: Path) -> None:
    """Each candidate of a compression is written as model.onnx in a folder of its own."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    answers = {}
    for name, seed in (("pruned", 1), ("dense", 2)):
        torch.manual_seed(seed)
        own = tmp_path / name
        own.mkdir()
        export_onnx(nn.Linear(16, 4).eval(), INPUTS, ROWS, own / "model.onnx", opset=20)
        graph = onnx.load(str(own / "model.onnx"))
        onnx.save(graph, str(own / "model.onnx"), save_as_external_data=True, location="w.data", size_threshold=0)
        answers[name] = open_session(own / "model.onnx").run(None, ROWS)[0]
        copy_graph(own / "model.onnx", folder / f"model.{name}.onnx")
        shutil.rmtree(own)
    for name, expected in answers.items():
        copied = folder / f"model.{name}.onnx"
        assert external_files(onnx.load(str(copied), load_external_data=False)) == {f"{copied.name}.0.data"}
        np.testing.assert_array_equal(open_session(copied).run(None, ROWS)[0], expected)
