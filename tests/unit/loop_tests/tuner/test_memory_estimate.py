"""The memory estimate against the allocator: within 15 % of the measured peak."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from cluster.bundle.signature import TensorSpec
from cluster.spec.model import CnnSpec, MlpSpec
from cluster.spec.train import TrainSpec
from trainers.loop.distributed.gradient_exchange import GradientExchange
from trainers.loop.distributed.world import World
from trainers.loop.parts.optimizer import build_optimizer, set_learning_rate
from trainers.loop.parts.precision import autocast
from trainers.loop.tuner.memory_estimate import estimate_memory, tensor_bytes
from trainers.models import build_model

SMALL_IMAGE = TensorSpec(name="x", datatype="FP32", shape=(-1, 1, 8, 8))
IMAGE = TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 32, 32))
TABLE = TensorSpec(name="x", datatype="FP32", shape=(-1, 100))
CASES = [
    (CnnSpec(family="cnn", width=16), SMALL_IMAGE),
    (CnnSpec(family="cnn", width=16, stages=3), IMAGE),
    (MlpSpec(family="mlp", hidden=(512, 512)), TABLE),
]


def measured_peak(model: nn.Module, tensor: TensorSpec, rows: int, train: TrainSpec) -> int:
    """Peak of the allocator over two real updates, plus what was there before."""
    inputs, targets = torch.randn(rows, *tensor.item_shape), torch.randint(0, 10, (rows,))
    before = [*model.parameters(), *model.buffers(), inputs, targets]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        exchange = GradientExchange(model, World(), train.exchange)
        optimizer = build_optimizer(model, train.optimizer)
        set_learning_rate(optimizer, 1e-3)
        for _ in range(2):
            exchange.clear()
            with autocast(train.precision, inputs.device):
                loss = F.cross_entropy(model(inputs), targets, reduction="sum")
            loss.backward()
            optimizer.step()
    events: list[Any] = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak + sum(tensor_bytes(item) for item in before)


@pytest.mark.parametrize(("spec", "tensor"), CASES, ids=["cnn-8x8", "cnn-32x32", "mlp"])
@pytest.mark.parametrize("rows", [32, 128])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_estimate_is_within_15_percent_of_the_measured_peak(
    spec: Any, tensor: TensorSpec, rows: int, optimizer: str
) -> None:
    train = TrainSpec.model_validate_json(json.dumps({"precision": "fp32", "optimizer": {"name": optimizer}}))
    model = build_model(spec, (tensor,), 10).train()
    weights = [parameter.clone() for parameter in model.parameters()]
    estimate = estimate_memory(model, (tensor,), rows, train).total
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True)), "the model is not touched"
    assert estimate == pytest.approx(measured_peak(model, tensor, rows, train), rel=0.15)


@pytest.mark.parametrize(("spec", "tensor", "less"), [(*CASES[1], True), (*CASES[2], False)], ids=["cnn", "mlp"])
def test_autocast_saves_what_it_has_cast(spec: Any, tensor: TensorSpec, less: bool) -> None:
    """bf16 halves activations and keeps a cast copy of each weight, which for an MLP is more than it saves; meta
    tensors would not have been cast at all."""
    sizes = {}
    for precision in ("fp32", "bf16"):
        train = TrainSpec.model_validate_json(json.dumps({"precision": precision}))
        model = build_model(spec, (tensor,), 10).train()
        estimate = estimate_memory(model, (tensor,), 128, train)
        sizes[precision] = estimate.activations
        if precision == "bf16" and (spec.family != "cnn" or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            # a CPU that has no bf16 convolutions unfolds each image into columns, which no GPU does
            assert estimate.total == pytest.approx(measured_peak(model, tensor, 128, train), rel=0.15)
    assert (sizes["bf16"] < 0.75 * sizes["fp32"]) == less
    assert sizes["bf16"] != sizes["fp32"]


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch was built without CUDA")
def test_a_gpus_forward_is_counted_without_a_gpu() -> None:
    """Linear - ReLU - Dropout - Linear in bf16, by hand: a mask of one byte an element, cast copies of the weights."""
    rows, width = 64, 256
    net = nn.Sequential(nn.Linear(100, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 10))
    train = TrainSpec.model_validate_json(json.dumps({"precision": "bf16"}))
    found = estimate_memory(net, (TABLE,), rows, train, "cuda").activations
    cast_rows, hidden, mask, dropped = 2 * rows * 100, 2 * rows * width, rows * width, 2 * rows * width
    last_weight, log_probabilities = 2 * width * 10, 4 * rows * 10
    assert found == cast_rows + hidden + mask + dropped + last_weight + log_probabilities
    assert not torch.is_autocast_enabled("cuda")
