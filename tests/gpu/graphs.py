"""A small convolutional network as ONNX files of every precision, and what it answers in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.bundle.signature import TensorSignature, TensorSpec
from trainers.compress.presets import StaticRecipe, tensorrt_preset
from trainers.compress.quantize import convert_fp16, preprocess, quantize_int8_static
from trainers.export.bfloat16 import convert_bf16
from trainers.export.onnx import export_onnx
from trainers.export.precision import Precision
from trainers.export.session import open_session, run_batches

SIGNATURE = TensorSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 32, 32)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
)
ROWS = {"x": np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)}
ALLOWED: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 8e-2, "int8": 1e-1}
"""Largest difference, relative to the largest logit of the float graph."""


def write_graph(folder: Path, precision: Precision) -> Path:
    """The file of one precision."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 49, 10),
    )  # fmt: skip
    source, target = folder / "float.onnx", folder / f"{precision}.onnx"
    export_onnx(net.eval(), SIGNATURE.inputs, {"x": ROWS["x"][:2]}, source, opset=22)
    if precision == "fp32":
        source.rename(target)
    elif precision == "fp16":
        convert_fp16(source, target)
    elif precision == "bf16":
        convert_bf16(source, target)
    else:
        preprocess(source, folder / "prepared.onnx")
        recipe = StaticRecipe(tensorrt_preset())
        quantize_int8_static(folder / "prepared.onnx", target, ROWS, recipe, ranges=folder / "ranges.json")
    return target


def float_answers(folder: Path) -> np.ndarray:
    """What the float graph answers on the CPU."""
    path = folder / "reference"
    path.mkdir()
    return run_batches(open_session(write_graph(path, "fp32")), ROWS)["logits"]


def assert_close(got: np.ndarray, want: np.ndarray, precision: Precision) -> float:
    """Largest difference relative to the largest logit; fails above what the precision allows."""
    worst = float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())
    assert worst <= ALLOWED[precision], f"{precision}: {worst:.3g} of the largest logit"
    return worst
