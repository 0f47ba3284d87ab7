"""What every family promises; `TestFamilies` runs for each one in `FAMILIES`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cluster.bundle.signature import TensorSpec
from cluster.errors import MemoryShortError, ModelError
from cluster.spec.model import AutoModelSpec, CnnSpec, MlpSpec, TransformerSpec
from trainers.models import FAMILIES, build_model, count_parameters

IMAGE = (TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8)),)
TABLE = (
    TensorSpec(name="numbers", datatype="FP32", shape=(-1, 5)),
    TensorSpec(name="codes", datatype="INT64", shape=(-1, 2)),
)
TEXT = (
    TensorSpec(name="numbers", datatype="FP32", shape=(-1, 5)),
    TensorSpec(name="message_ids", datatype="INT64", shape=(-1, 9)),
)
TRANSFORMER = TransformerSpec(family="transformer", width=16, heads=2, layers=1, vocabulary=20)
SAMPLES: dict[str, tuple[Any, tuple[TensorSpec, ...]]] = {
    "mlp": (MlpSpec(family="mlp", hidden=(16, 8), dropout=0.1), TABLE),
    "cnn": (CnnSpec(family="cnn", width=4), IMAGE),
    "transformer": (TRANSFORMER, TEXT),
}


def rows(inputs: tuple[TensorSpec, ...], count: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(count, *tensor.item_shape)
        if tensor.datatype == "FP32"
        else torch.ones(count, *tensor.item_shape, dtype=torch.int64)
        for tensor in inputs
    )


@pytest.mark.parametrize("family", sorted(SAMPLES.keys() & FAMILIES.keys()))
class TestFamilies:
    def test_forward_is_rows_by_outputs_in_float32(self, family: str) -> None:
        spec, inputs = SAMPLES[family]
        model = build_model(spec, inputs, 3).eval()
        for count in (1, 7):
            outputs = model(*rows(inputs, count))
            assert outputs.shape == (count, 3)
            assert outputs.dtype == torch.float32

    def test_the_seed_decides_the_weights(self, family: str) -> None:
        spec, inputs = SAMPLES[family]
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(build_model(spec, inputs, 3).state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])

    def test_all_parameters_get_a_gradient(self, family: str) -> None:
        spec, inputs = SAMPLES[family]
        model = build_model(spec, inputs, 3)
        model(*rows(inputs, 8)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_eval_rows_do_not_depend_on_each_other(self, family: str) -> None:
        spec, inputs = SAMPLES[family]
        model = build_model(spec, inputs, 3).eval()
        batch = rows(inputs, 6)
        one = model(*(tensor[2:3] for tensor in batch))
        torch.testing.assert_close(model(*batch)[2:3], one)


def test_auto_is_refused() -> None:
    with pytest.raises(ModelError, match="still 'auto'"):
        build_model(AutoModelSpec(), IMAGE, 3)


def test_cnn_of_a_table_and_of_too_small_images_is_refused() -> None:
    with pytest.raises(ModelError, match="one image input"):
        build_model(CnnSpec(family="cnn"), TABLE, 3)
    tiny = (TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 4, 4)),)
    with pytest.raises(ModelError, match="5 stages need 16 pixels"):
        build_model(CnnSpec(family="cnn", stages=5), tiny, 3)


@pytest.mark.parametrize("side", [8, 14, 28, 32, 33])
def test_cnn_head_does_not_grow_with_the_image(side: int) -> None:
    inputs = (TensorSpec(name="image", datatype="FP32", shape=(-1, side, side)),)
    model = build_model(CnnSpec(family="cnn", width=4), inputs, 3).eval()
    assert model(torch.randn(2, side, side)).shape == (2, 3)
    head = model.head
    assert isinstance(head, torch.nn.Linear)
    assert head.in_features <= 8 * 49


def test_parameters_are_counted() -> None:
    model = build_model(MlpSpec(family="mlp", hidden=(4,)), (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),), 2)
    assert count_parameters(model) == 3 * 4 + 4 + 4 * 2 + 2


def test_mlp_of_text_is_refused() -> None:
    with pytest.raises(ModelError, match="numbers of a fixed shape"):
        build_model(MlpSpec(family="mlp"), (TensorSpec(name="t", datatype="BYTES", shape=(-1, 1)),), 2)


def test_a_model_that_fits_into_no_memory_says_so() -> None:
    spec = MlpSpec(family="mlp", hidden=(1 << 57,))  # exabytes: refused at once, everywhere
    with pytest.raises(MemoryShortError, match="family 'mlp'") as caught:
        build_model(spec, TABLE, 3)
    assert "smaller" in caught.value.remedy
