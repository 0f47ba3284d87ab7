"""Whole trainings against one big batch by plain torch: workers and micro-batches must not be seen in anything.

The judge below knows nothing of windows, exchanges or micro-batches: one batch, `reduction="sum"`, one division.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from cluster.bundle.signature import TensorSpec
from cluster.telemetry.events import ListSink, TrainStep
from tests.unit.loop_tests.rig import CLASSES, HERE, request_for, run_ranks, start, write_data
from trainers.data.shards import Split, write_prepared
from trainers.loop import FitRequest, fit
from trainers.loop.data.sampler import Window, epoch_order, part
from trainers.loop.distributed.world import World
from trainers.loop.parts.losses import IGNORE_INDEX
from trainers.loop.setup import build_module
from trainers.loop.state import Job, State
from trainers.loop.step import compute_gradient, update

CPU = torch.device("cpu")
ROWS, BATCH, EPOCHS, RATE = 37, 15, 2, 0.1
SGD = {"name": "sgd", "learning_rate": RATE, "momentum": 0.9, "weight_decay": 0.0}
TOLERANCES = {"FP64": 1e-10, "FP32": 1e-6}
FLAT = {"name": "constant", "warmup": 0.0}


def request_of(prepared: Path, micro: int, workers: int = 1, **more: Any) -> FitRequest:
    """Windows of 15, 15 and 7 rows, every fifth target ignored."""
    double = "FP64" in (prepared / "dataset.json").read_text()
    options = {"optimizer": SGD, "schedule": FLAT, "epochs": EPOCHS, "keep": "last", "log_every_updates": 1}
    return request_for(
        prepared, batch=BATCH, micro=micro, workers=workers, arguments={"double": double}, **{**options, **more}
    )


def one_big_batch(request: FitRequest) -> tuple[dict[str, np.ndarray], list[float]]:
    """Weights and the loss of each update."""
    job, _ = start(request)
    model, split = build_module(request, job.data), job.data.splits["train"]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    losses = []
    for epoch in range(EPOCHS):
        order = epoch_order(request.seed, epoch, ROWS)
        for at in range(0, ROWS, BATCH):
            rows = order[at : at + BATCH]
            targets = torch.from_numpy(split.targets[rows])
            outputs = model(torch.from_numpy(split.inputs["x"][rows]))
            loss = F.cross_entropy(outputs, targets, reduction="sum", ignore_index=IGNORE_INDEX)
            loss = loss / (targets != IGNORE_INDEX).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}, losses


def trained(rank: int, folder: str, micro: int, workers: int) -> dict[str, tuple]:
    """By datatype: weights, the loss logged at each update, metrics of the epochs."""
    found = {}
    for dtype in TOLERANCES:
        sink = ListSink()
        result = fit(request_of(Path(folder) / dtype, micro, workers), sink=sink, device=CPU)
        losses = [event.loss for event in sink.events if isinstance(event, TrainStep)]
        weights = {name: tensor.numpy() for name, tensor in result.weights.items()}
        found[dtype] = weights, losses, [event.metrics for event in result.history]
    return found


@pytest.mark.parametrize(("workers", "micro"), [(1, 15), (1, 4), (2, 4), (3, 2), (4, 3)])
def test_training_equals_one_big_batch_in_float64_to_1e_10_and_in_float32_to_1e_6(
    tmp_path: Path, workers: int, micro: int
) -> None:
    """Parameters after six updates, and the loss logged at each: neither K nor the number of workers is in them."""
    for dtype in TOLERANCES:
        write_data(tmp_path / dtype, ROWS, ignore_every=5, dtype=dtype)
    arguments = (str(tmp_path), micro, workers)
    results = [trained(0, *arguments)] if workers == 1 else run_ranks(workers, trained, tmp_path / "r", *arguments)
    for dtype, tolerance in TOLERANCES.items():
        expected, expected_losses = one_big_batch(request_of(tmp_path / dtype, BATCH))
        for weights, _, metrics in (result[dtype] for result in results):
            for name, value in expected.items():
                np.testing.assert_allclose(weights[name], value, rtol=tolerance, atol=tolerance)
            assert metrics == results[0][dtype][2], "the same on every worker"
        np.testing.assert_allclose(results[0][dtype][1], expected_losses, rtol=tolerance)


def _when_sent(rank: int, prepared: str) -> list[tuple[list[int], int]]:
    """With one bucket and with many: for each all-reduce of a window how many forwards had begun; the buckets."""
    found = []
    for bucket_mib in (25.0, 0.0005):
        request = request_of(Path(prepared), 2, 2, exchange={"bucket_mib": bucket_mib, "wire": "same"})
        job, state = start(request)
        window = Window(0, 0, np.arange(BATCH), *part(BATCH, World(rank, 2)))
        assert len(window.micro_slices(2)) == 4
        found.append((_sent_in(job, state, window), len(state.exchange._buckets)))
    return found


def _sent_in(job: Job, state: State, window: Window) -> list[int]:
    forwards, sent = [0], []
    state.model.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    plain = dist.all_reduce

    def counted(*arguments: Any, **more: Any) -> Any:
        sent.append(forwards[0])
        return plain(*arguments, **more)

    dist.all_reduce = counted
    try:
        compute_gradient(job, state, window, job.train.weight_of(window.rows), False)
    finally:
        dist.all_reduce = plain
    return sent


def test_nothing_is_sent_before_the_last_micro_batch_and_each_bucket_once(tmp_path: Path) -> None:
    """The shortcut (only backward in no_sync, or none at all) sends in each micro-batch."""
    prepared = write_data(tmp_path / "data", ROWS, ignore_every=5)
    for one, many in run_ranks(2, _when_sent, tmp_path / "r", str(prepared)):
        assert one == ([4], 1)
        assert many[1] > 1
        assert many[0] == [4] * many[1]


def _statistics(rank: int, prepared: str) -> tuple[int, np.ndarray]:
    request = request_for(
        Path(prepared), batch=8, micro=4, workers=2, arguments={"norm": True}, optimizer=SGD, schedule=FLAT
    )
    job, state = start(request)
    rows = np.arange(8)
    update(job, state, Window(0, 0, rows, *((0, 8) if rank == 0 else (8, 8))))
    norm = state.model[1]  # type: ignore[index]
    return int(norm.num_batches_tracked), norm.running_mean.numpy()


def test_batch_norm_of_a_worker_without_rows_sees_no_padding(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", ROWS)
    (moved, mean), (agreed, same) = run_ranks(2, _statistics, tmp_path / "r", str(prepared))
    job, state = start(request_for(prepared, batch=8, micro=8, arguments={"norm": True}))
    seen = state.model[0](job.train.read(np.arange(8)).inputs[0])  # type: ignore[index]
    np.testing.assert_allclose(mean, 0.1 * seen.mean(dim=0).detach().numpy(), rtol=1e-10)
    assert (moved, agreed) == (1, 1), "once a global batch, on every worker"
    assert np.array_equal(mean, same), "a forward of padding would have moved them"


def test_tokens_of_variable_length_weigh_the_same_whatever_row_they_are_in(tmp_path: Path) -> None:
    """Rows of 1 to 6 tokens: a mean per row or per micro-batch would give short rows more weight."""
    rng = np.random.default_rng(5)
    rows, length = 21, 6
    inputs = rng.normal(size=(rows, length, 4))
    targets = rng.integers(0, CLASSES, (rows, length))
    targets[np.arange(length)[None] >= rng.integers(1, length + 1, (rows, 1))] = IGNORE_INDEX
    split = Split({"x": inputs}, targets)
    signature = (TensorSpec(name="x", datatype="FP64", shape=(-1, length, 4)),)
    splits = {"train": split, "validation": split}
    write_prepared(tmp_path, splits, task="classification", classes=tuple("abc"), inputs=signature)
    request = request_for(tmp_path, batch=rows, micro=4, factory=f"{HERE}:build_tagger")
    job, state = start(request)
    window = Window(0, 0, np.arange(rows), 0, rows)
    weight = job.train.weight_of(window.rows)
    assert weight == (targets != IGNORE_INDEX).sum()
    compute_gradient(job, state, window, weight, False)
    model = build_module(request, job.data)
    logits = model(torch.from_numpy(inputs)).flatten(0, 1)
    F.cross_entropy(logits, torch.from_numpy(targets).flatten(), ignore_index=IGNORE_INDEX).backward()
    for parameter, expected in zip(state.exchange.parameters, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-10, atol=1e-14)


RECIPES: list[dict[str, Any]] = [
    {"loss": {"label_smoothing": 0.2}},
    {"loss": {"focal_gamma": 2.0}},
    {"loss": {"class_weights": "balanced"}},
    {"loss": {"class_weights": [1.0, 5.0, 0.2]}},
    {"augment": {"mixup_alpha": 0.4}},
    {"augment": {"cutmix_alpha": 1.0}},
    {"augment": {"shift_pixels": 2}},
    {"clip_agc": 0.001},
    {"clip_value": 0.001},
    {"clip_norm": 0.01},
    {"ema": {"decay": 0.9}},
    {"growth": {"factor": 2.0}},
    {"optimizer": {**SGD, "scaling": "sqrt", "scaling_base": 60}},
    *({"optimizer": {"name": name, "learning_rate": 0.02}} for name in (
        "adam", "adamw", "lion", "muon", "adafactor", "schedule_free", f"{HERE}:make_own_optimizer")),
    {"optimizer": {**SGD, "l1": 0.01}},
    {"optimizer": {**SGD, "layer_decay": 0.5}},
    {"optimizer": {**SGD, "groups": [{"match": "*.bias", "learning_rate_factor": 0.1, "weight_decay": 0.5}]}},
    {"optimizer": {**SGD, "groups": [{"match": "1.*", "freeze": True}]}},
    {"clip_norm": 0.01, "clip_norm_type": "inf"},
    {"schedule": {"name": "cosine", "warmup_epochs": 0.5, "eta_min": 0.05}},
    {"schedule": {"name": f"{HERE}:own_schedule"}},
    {"max_updates": 4},
    {"callbacks": [f"{HERE}:Meddling"]},
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_each_recipe_does_something_and_does_not_see_the_micro_batch(tmp_path: Path, recipe: dict[str, Any]) -> None:
    prepared = write_data(tmp_path, ROWS, image=True)

    def weights(micro: int, **more: Any) -> torch.Tensor:
        request = request_for(
            prepared,
            batch=BATCH,
            micro=micro,
            factory=f"{HERE}:build_image_net",
            **{"optimizer": SGD, "schedule": FLAT, "epochs": EPOCHS, "keep": "last", **more},
        )
        return torch.cat([tensor.flatten() for tensor in fit(request, sink=ListSink(), device=CPU).weights.values()])

    whole = weights(64, **recipe)
    torch.testing.assert_close(weights(4, **recipe), whole, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(whole, weights(64), rtol=1e-4, atol=1e-6), "the knob is dead"
