"""The distillation loss: its parts, the teacher that answers live, and features that are matched by their angle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.model import MlpSpec, TransformerSpec
from trainers.compress.distill import distillation_loss
from trainers.compress.features import WithFeatures, feature_loss, head_of
from trainers.compress.students import build_student, scaled_model, student_arguments, untaught

TABLE = (TensorSpec(name="x", datatype="FP32", shape=(-1, 6)),)
LOGITS, TEACHER = torch.randn(5, 3), torch.randn(5, 3)
LABELS = torch.tensor([0, 1, 2, 1, 0])


def arguments(hidden: int, **more: Any) -> dict[str, Any]:
    return student_arguments(MlpSpec(family="mlp", hidden=(hidden,)), TABLE, 3, **more)


def test_soft_targets_at_a_temperature_are_mixed_with_the_labels() -> None:
    losses = distillation_loss(2.0, 0.7, 3)((torch.zeros(5, 6), TEACHER), LOGITS, LABELS)
    soft = F.kl_div(F.log_softmax(LOGITS / 2, 1), F.softmax(TEACHER / 2, 1), reduction="none").sum(1) * 4
    hard = F.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(losses, 0.7 * soft + 0.3 * hard)
    alone = distillation_loss(2.0, 1.0, 3)((TEACHER,), TEACHER, LABELS)
    torch.testing.assert_close(alone, torch.zeros(5), atol=1e-6, rtol=0)  # a perfect student


def test_regression_learns_both_values_by_squared_error() -> None:
    losses = distillation_loss(2.0, 0.5, 1)((torch.tensor([[2.0]]),), torch.tensor([[1.0]]), torch.tensor([4.0]))
    torch.testing.assert_close(losses, torch.tensor([0.5 * 1 + 0.5 * 9.0]))


def test_a_live_teacher_answers_for_the_rows_as_they_are() -> None:
    torch.manual_seed(0)
    teacher = build_student(**arguments(8)).eval()
    torch.manual_seed(0)
    loss = distillation_loss(1.0, 1.0, 3, teacher=arguments(8))
    x = torch.randn(5, 6)
    torch.testing.assert_close(loss((x,), teacher(x).detach(), LABELS), torch.zeros(5), atol=1e-6, rtol=0)


def test_features_are_matched_by_angle_and_logits_are_left_alone() -> None:
    features = torch.randn(5, 4)
    taught, answered = torch.cat([TEACHER, features], 1), torch.cat([LOGITS, 3 * features], 1)
    plain = distillation_loss(2.0, 0.7, 3)((TEACHER,), LOGITS, LABELS)
    same = distillation_loss(2.0, 0.7, 3, feature_weight=2.0)((taught,), answered, LABELS)
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
    opposite = torch.cat([LOGITS, -features], 1)
    torch.testing.assert_close(
        distillation_loss(2.0, 0.7, 3, feature_weight=2.0)((taught,), opposite, LABELS), plain + 4
    )
    assert feature_loss(features, features).abs().max() < 1e-6


def test_a_student_answers_features_only_while_it_is_trained() -> None:
    student = build_student(**arguments(8, lesson={"features": 16, "answers": 1}))
    x, told = torch.randn(5, 6), torch.randn(5, 3 + 16)
    assert student.train()(x, told).shape == (5, 3 + 16)
    assert student.eval()(x, told).shape == (5, 3)
    plain = build_student(**arguments(8))
    plain.load_state_dict(untaught(student.state_dict(), features=True))
    torch.testing.assert_close(plain.eval()(x), student(x, told))


def test_the_features_are_what_the_head_is_given() -> None:
    network = build_student(**arguments(8)).eval()
    told = WithFeatures(network, 3).eval()(x := torch.randn(5, 6))
    torch.testing.assert_close(head_of(network, 3)(told[:, 3:]), network(x))


def test_matching_needs_a_linear_head() -> None:
    with pytest.raises(ModelError, match="no linear layer with 3 outputs"):
        head_of(nn.Conv2d(1, 3, 3), 3)


def test_a_narrower_transformer_keeps_its_heads() -> None:
    spec = TransformerSpec(family="transformer", width=96, heads=12)
    scaled = scaled_model(spec, 0.4)
    assert isinstance(scaled, TransformerSpec)
    assert (scaled.width, scaled.heads) == (48, 12)
