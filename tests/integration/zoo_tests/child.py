"""Runs in an environment with the zoo: build, train, rebuild, export and compare. Prints one JSON object."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from cluster.bundle.signature import TensorSpec
from cluster.errors import MantaError
from cluster.spec.batch_plan import BatchPlan
from cluster.spec.export import ParitySpec
from cluster.spec.model import ModelSpec
from cluster.spec.train import TrainSpec
from cluster.telemetry.events import ListSink, TrainStep
from trainers.data.shards import Split, write_prepared
from trainers.export.onnx import export_onnx
from trainers.export.parity import check_parity
from trainers.loop import FitRequest, fit
from trainers.loop.result import write_result
from trainers.models.weights import load_module

ROWS, TOKENS, VOCABULARY = 24, 12, 40


def data(folder: Path, kind: str) -> tuple[TensorSpec, ...]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, ROWS)
    if kind == "tokens":
        values = rng.integers(2, VOCABULARY, (ROWS, TOKENS))
        values[:, 7:] = 0
        spec = TensorSpec(name="text_ids", datatype="INT64", shape=(-1, TOKENS))
    else:
        channels = {"gray": 1, "rgb": 3}[kind]
        values = rng.normal(size=(ROWS, channels, 32, 32)).astype(np.float32)
        spec = TensorSpec(name="image", datatype="FP32", shape=(-1, channels, 32, 32))
    split = Split({spec.name: values}, targets.astype(np.int64))
    splits = {"train": split, "validation": split}
    write_prepared(folder, splits, task="classification", classes=("a", "b"), inputs=(spec,))
    return (spec,)


def go(model: dict[str, Any], kind: str, folder: Path) -> dict[str, Any]:
    spec: Any = TypeAdapter(ModelSpec).validate_json(json.dumps(model))
    inputs = data(folder / "prepared", kind)
    train = {"epochs": 2, "precision": "fp32", "optimizer": {"learning_rate": 1e-3}, "log_every_updates": 1}
    plan = BatchPlan(
        batch_size_global=8,
        batch_size_per_worker=4,
        workers=1,
        updates_per_epoch=3,
        updates_total=6,
    )
    request = FitRequest(
        train=TrainSpec.model_validate_json(json.dumps(train)),
        batch=plan,
        model=spec,
        seed=1,
        prepared=folder / "prepared",
        stage="train",
        checkpoints=None,
    )
    sink = ListSink()
    result = fit(request, sink=sink, device=torch.device("cpu"))
    write_result(folder / "out", result)
    module = load_module(spec, inputs, 2, folder / "out")
    rows = {inputs[0].name: np.load(folder / "prepared" / "train" / f"inputs.{inputs[0].name}.npy")[:7].copy()}
    export_onnx(module, inputs, rows, folder / "model.onnx", opset=18)
    parity = check_parity(module, folder / "model.onnx", rows, ParitySpec())
    steps = [event for event in sink.events if isinstance(event, TrainStep)]
    return {
        "updates": result.updates,
        "parameters": result.num_parameters,
        "flops_per_row": steps[-1].extra["flops_per_s"] / steps[-1].samples_per_s,
        "max_abs_diff": parity["logits"]["max_abs_diff"],
        "torch": torch.__version__,
    }


def save_tiny_bert(folder: Path) -> None:
    """A saved model, for `pretrained: true` without a network."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(5)
    config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of other libraries' exports
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        model = json.loads(sys.argv[1])
        if model.get("name") == "SAVED":
            save_tiny_bert(Path(temporary) / "saved")
            model["name"] = str(Path(temporary) / "saved")
        try:
            answer = go(model, sys.argv[2], Path(temporary))
        except MantaError as error:
            answer = {"error": error.message}
    sys.stdout.write(json.dumps(answer) + "\n")
