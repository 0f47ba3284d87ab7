"""Recipes by spec: weight decay, EMA, label smoothing, focal loss, class weights, MixUp, CutMix, stopping, keeping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cluster.errors import SpecError
from cluster.spec.optimizer import OptimizerSpec
from cluster.spec.train import AugmentSpec, EmaSpec, LossSpec
from cluster.telemetry.events import EpochFinished, ListSink
from tests.unit.loop_tests.rig import CLASSES, request_for, start, write_data
from trainers.data.shards import Split
from trainers.loop import fit
from trainers.loop.data.augment import Augmenter, shift_images
from trainers.loop.data.loader import SplitReader, row_weights
from trainers.loop.data.sampler import Window
from trainers.loop.parts.ema import Ema
from trainers.loop.parts.losses import IGNORE_INDEX, MicroBatch, Objective
from trainers.loop.parts.optimizer import build_optimizer

CPU = torch.device("cpu")


def test_weight_decay_leaves_norms_and_biases_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(model, OptimizerSpec(weight_decay=0.5))
    decayed, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 1, 3, 3), (2, 4)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert all(p.dim() == 1 for p in plain["params"])
    assert optimizer.defaults["fused"]


def test_ema_is_the_formula_and_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    ema, expected = Ema(model, EmaSpec(decay=0.5)), model.weight.detach().clone()
    for number in range(4):
        with torch.no_grad():
            model.weight.fill_(float(number))
        ema.update(number)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * number
    torch.testing.assert_close(ema.averages[0], expected)
    with ema.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert model.weight.detach()[0, 0] == 3.0
    prepared = write_data(tmp_path, 24, dtype="FP32")
    request = request_for(prepared, batch=8, micro=8, epochs=2, ema={"decay": 0.9}, arguments={"double": False})
    kept = fit(request, sink=ListSink(), device=CPU).weights
    without = replace(request, train=request.train.model_copy(update={"ema": None}))
    assert not torch.equal(kept["0.weight"], fit(without, sink=ListSink(), device=CPU).weights["0.weight"])


def test_label_smoothing_is_torchs_and_validation_is_not_smoothed() -> None:
    logits, targets = torch.randn(6, CLASSES), torch.tensor([0, 1, 2, 2, IGNORE_INDEX, 1])
    batch = MicroBatch((), targets)
    smooth = Objective("classification", LossSpec(label_smoothing=0.2))
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(smooth.sum(batch, logits), expected)
    plain = Objective("classification").sum(batch, logits)
    torch.testing.assert_close(plain, F.cross_entropy(logits, targets, reduction="sum"))


def test_focal_loss_is_its_formula() -> None:
    logits, targets = torch.randn(6, CLASSES), torch.tensor([0, 1, 2, 2, 0, 1])
    p = logits.softmax(1)[torch.arange(6), targets]
    found = Objective("classification", LossSpec(focal_gamma=2.0)).sum(MicroBatch((), targets), logits)
    torch.testing.assert_close(found, (-((1 - p) ** 2) * p.log()).sum())


def test_token_targets_count_valid_tokens(tmp_path: Path) -> None:
    logits = torch.randn(2, 4, CLASSES)
    targets = torch.tensor([[0, 1, IGNORE_INDEX, IGNORE_INDEX], [2, 2, 1, IGNORE_INDEX]])
    found = Objective("classification").sum(MicroBatch((), targets), logits)
    torch.testing.assert_close(found, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
    reader = SplitReader(Split({"x": np.zeros((2, 4), np.float32)}, targets.numpy()), CPU)
    assert reader.weight_of(np.array([0, 1])) == 5.0


def test_items_of_weight_zero_do_not_poison_the_sum() -> None:
    logits = torch.tensor([[float("nan")] * CLASSES, [1.0, 2.0, 3.0]], requires_grad=True)
    batch = MicroBatch((), torch.tensor([0, 1]), torch.tensor([0.0, 2.0]))
    loss = Objective("classification").sum(batch, logits)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_balanced_class_weights_give_each_class_the_same_share() -> None:
    targets = np.array([0] * 90 + [1] * 9 + [2] * 1, np.int64)
    split = Split({"x": np.zeros((100, 1), np.float32)}, targets)
    weights = row_weights(split, LossSpec(class_weights="balanced"), 3)
    assert weights is not None
    assert [float(weights[targets == c].sum()) for c in range(3)] == pytest.approx([100 / 3] * 3)
    listed = row_weights(split, LossSpec(class_weights=(1.0, 2.0, 4.0)), 3)
    assert listed is not None
    assert set(listed[targets == 2]) == {4.0}
    with pytest.raises(SpecError, match="2 values and the data has 3 classes"):
        row_weights(split, LossSpec(class_weights=(1.0, 2.0)), 3)


def mixing(**augment: float) -> tuple[Augmenter, SplitReader, Window]:
    rng = np.random.default_rng(0)
    split = Split({"x": rng.normal(size=(12, 1, 6, 6)).astype(np.float32)}, rng.integers(0, CLASSES, 12))
    spec = AugmentSpec.model_validate_json(json.dumps(augment))
    window = Window(3, 5, rng.permutation(12), 0, 12)
    return Augmenter(spec, 7, (1, 6, 6), CLASSES), SplitReader(split, CPU), window


@pytest.mark.parametrize("augment", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}, {"shift_pixels": 2}])
def test_augmentation_is_a_function_of_seed_epoch_and_position(augment: dict) -> None:
    """The same rows, whole or in micro-batches of other workers, now or after a resume."""
    augmenter, reader, window = mixing(**augment)
    whole = augmenter.apply(reader.read(window.rows), augmenter.draw(window), slice(0, 12), reader)
    again, _, _ = mixing(**augment)
    parts = [
        again.apply(reader.read(window.rows[a:b]), again.draw(window), slice(a, b), reader)
        for a, b in [(0, 5), (5, 12)]
    ]
    torch.testing.assert_close(torch.cat([part.inputs[0] for part in parts]), whole.inputs[0], rtol=0, atol=0)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert not torch.equal(whole.inputs[0], reader.read(window.rows).inputs[0])


def test_mixup_mixes_inputs_and_targets_by_the_same_share_and_keeps_the_weight() -> None:
    augmenter, reader, window = mixing(mixup_alpha=0.4)
    change = augmenter.draw(window)
    mixed = augmenter.apply(reader.read(window.rows), change, slice(0, 12), reader)
    own, other = reader.read(window.rows), reader.read(change.partners)  # type: ignore[arg-type]
    torch.testing.assert_close(mixed.inputs[0], change.share * own.inputs[0] + (1 - change.share) * other.inputs[0])
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(12))
    assert sorted(change.partners) == sorted(window.rows), "each row is a partner once"  # type: ignore[arg-type, type-var]


def test_cutmix_share_is_the_area_that_is_left() -> None:
    augmenter, _, window = mixing(cutmix_alpha=1.0)
    change = augmenter.draw(window)
    top, bottom, left, right = change.box  # type: ignore[misc]
    assert change.share == pytest.approx(1 - (bottom - top) * (right - left) / 36)


def test_cutmix_takes_the_box_from_the_partner_and_the_targets_by_area() -> None:
    augmenter, reader, window = mixing(cutmix_alpha=1.0)
    change = augmenter.draw(window)
    mixed = augmenter.apply(reader.read(window.rows), change, slice(0, 12), reader)
    own, other = reader.read(window.rows), reader.read(change.partners)  # type: ignore[arg-type]
    inside = torch.zeros(6, 6, dtype=torch.bool)
    top, bottom, left, right = change.box  # type: ignore[misc]
    inside[top:bottom, left:right] = True
    assert torch.equal(mixed.inputs[0][..., inside], other.inputs[0][..., inside])
    assert torch.equal(mixed.inputs[0][..., ~inside], own.inputs[0][..., ~inside])
    share = float((~inside).float().mean())
    classes = [F.one_hot(batch.targets, CLASSES).float() for batch in (own, other)]
    torch.testing.assert_close(mixed.targets, share * classes[0] + (1 - share) * classes[1])


def test_shift_moves_and_fills_with_zeros() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3) + 1
    moved = shift_images(image, torch.tensor([[1, -1]]))
    assert moved[0, 0].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


def test_augmentation_of_rows_that_are_not_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not images"):
        start(request_for(write_data(tmp_path, 8), batch=4, micro=4, augment={"shift_pixels": 1}))


def test_early_stopping_ends_after_patience_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """A learning rate that ruins the model: the best epoch is an early one."""
    prepared = write_data(tmp_path, 48, dtype="FP32")
    request = request_for(
        prepared,
        batch=4,
        micro=4,
        epochs=40,
        arguments={"double": False},
        optimizer={"name": "sgd", "learning_rate": 3.0, "momentum": 0.9},
        schedule={"name": "constant", "warmup": 1.0},
        early_stopping={"patience": 3},
    )
    result = fit(request, sink=ListSink(), device=CPU)
    losses = [event.metrics["validation.loss"] for event in result.history]
    assert result.stopped_early
    assert len(losses) < 40
    assert result.best_epoch == losses.index(min(losses)) + 1 == len(losses) - 3
    assert result.metrics["validation.loss"] == min(losses)


@pytest.mark.parametrize(
    ("mode", "values", "ended_after", "best"),
    [
        ("min", [1.0, 0.9, 0.85, 0.84, 0.83, 0.1], 5, 5),
        ("max", [0.5, 0.6, 0.65, 0.66, 0.64, 0.9], 5, 4),
        ("max", [0.5, float("nan"), 0.8, 0.7, 0.95, 0.2], 6, 5),
    ],
)
def test_early_stopping_counts_epochs_without_min_delta_in_either_direction(
    tmp_path: Path, mode: str, values: list[float], ended_after: int, best: int
) -> None:
    """Gains smaller than min_delta do not keep a run alive, but the weights of the best epoch are kept all the same."""
    from trainers.loop.loop import _keep_best

    request = request_for(
        write_data(tmp_path, 16),
        batch=8,
        micro=8,
        early_stopping={"patience": 3, "min_delta": 0.09},
        best={"metric": "m", "mode": mode},
    )
    job, state = start(request)
    seen = 0
    for epoch, value in enumerate(values):
        state.cursor.epoch, seen = epoch, epoch + 1
        _keep_best(job, state, value, {"m": value})
        if state.stopped_early:
            break
    assert seen == ended_after
    assert state.best.epoch + 1 == best
    assert state.best.value == values[best - 1]


def test_on_epoch_ends_the_run(tmp_path: Path) -> None:
    seen: list[int] = []

    def enough(event: EpochFinished) -> bool:
        seen.append(event.epoch)
        return event.epoch == 2

    request = request_for(write_data(tmp_path, 16), batch=8, micro=8, epochs=9)
    assert fit(request, sink=ListSink(), device=CPU, on_epoch=enough).stopped_early
    assert seen == [1, 2]


def test_unknown_best_metric_names_those_there_are(tmp_path: Path) -> None:
    request = request_for(write_data(tmp_path, 16), batch=8, micro=8, best={"metric": "validation.f2"})
    with pytest.raises(SpecError, match=r"validation\.accuracy, validation\.loss"):
        fit(request, sink=ListSink(), device=CPU)


@pytest.mark.parametrize(("micro", "workers"), [(12, 1), (3, 1), (5, 1)])
def test_logged_losses_do_not_depend_on_k(tmp_path: Path, micro: int, workers: int) -> None:
    prepared = write_data(tmp_path, 40)
    losses = []
    for size in (micro, 12):
        result = fit(request_for(prepared, batch=12, micro=size, epochs=2), sink=ListSink(), device=CPU)
        losses.append([event.metrics["train.loss"] for event in result.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
