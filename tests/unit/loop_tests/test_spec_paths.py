"""Each switch for speed takes the path that it names."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import CLASSES, FEATURES, request_for, run_ranks, start, write_data
from trainers.loop import fit, setup
from trainers.loop.data.sampler import Window, part
from trainers.loop.distributed.world import World
from trainers.loop.step import update

CPU = torch.device("cpu")
THIS = "tests.unit.loop_tests.test_spec_paths"
WIDE = 4096  # elements of the widest parameter below


def build_two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, WIDE // FEATURES), nn.Tanh(), nn.Linear(WIDE // FEATURES, CLASSES))


def build_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, CLASSES))


EXCHANGES: dict[str, dict[str, Any]] = {
    "same": {"wire": "same"},
    "bf16": {"wire": "bf16"},
    "small": {"bucket_mib": 2048 * 4 / (1 << 20)},
}
Sent = tuple[list[tuple[str, int]], np.ndarray, float]


def _sent(rank: int, prepared: str) -> dict[str, Sent]:
    """For each exchange: (datatype, elements) of every all-reduce of one update, the summed gradient, the loss."""
    found = {}
    plain = dist.all_reduce
    for name, exchange in EXCHANGES.items():
        request = request_for(
            Path(prepared), batch=16, micro=4, workers=2, factory=f"{THIS}:build_two_layers", exchange=exchange
        )
        job, state = start(request)
        sent: list[tuple[str, int]] = []

        def recording(tensor: torch.Tensor, *arguments: Any, into: Any = sent, **more: Any) -> Any:
            into.append((str(tensor.dtype), tensor.numel()))
            return plain(tensor, *arguments, **more)

        dist.all_reduce = recording  # type: ignore[assignment]
        report = update(job, state, Window(0, 0, np.arange(16), *part(16, World(rank, 2))))
        dist.all_reduce = plain
        found[name] = (sent, state.exchange.gradient.numpy().copy(), report.loss_sum)
    return found


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Sent]]:
    """What each of two workers sent."""
    folder = tmp_path_factory.mktemp("sent")
    return run_ranks(2, _sent, folder / "ranks", str(write_data(folder / "data", 16, dtype="FP32")))


def test_wire_bf16_sends_half_the_bytes_and_the_loss_in_full(sent: list[dict[str, Sent]]) -> None:
    same, exact, loss = sent[0]["same"]
    half, rounded, half_loss = sent[0]["bf16"]
    count = len(exact)
    assert same == [("torch.float32", count + 4)], "the scalars travel in the same all-reduce"
    assert half == [("torch.bfloat16", count), ("torch.float32", 4)]
    assert half_loss == loss
    assert np.array_equal(rounded, sent[1]["bf16"][1]), "both workers have the same sum"
    assert not np.array_equal(rounded, exact), "a bf16 sum is rounded"
    np.testing.assert_allclose(rounded, exact, rtol=3 * 2**-8, atol=5e-3 * float(np.abs(exact).max()))


def test_bucket_mib_cuts_the_gradient_into_pieces_of_that_size(sent: list[dict[str, Sent]]) -> None:
    """The parameters, last first: 3 + 3 x 512 elements, 512, 4096. A bucket of 2048 never cuts a parameter."""
    units = WIDE // FEATURES
    pieces = [elements for _, elements in sent[0]["small"][0]]
    assert pieces == [CLASSES + CLASSES * units, units, WIDE + 4], "the scalars go with the last"
    assert np.array_equal(sent[0]["small"][1], sent[0]["same"][1]), "the same sum"


class Counting:
    """A backend of torch.compile that runs the captured graph and counts."""

    def __init__(self) -> None:
        self.graphs, self.calls = 0, 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph.forward(*arguments)

        return run


def test_compile_sends_every_training_forward_through_the_compiled_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = write_data(tmp_path, 24, dtype="FP32")
    ends = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        backend = Counting()
        monkeypatch.setattr(setup, "COMPILE_BACKEND", backend)
        request = request_for(
            prepared, batch=12, micro=4, epochs=2, arguments={"double": False}, compile=compiled, clip_norm=1.0
        )
        result = fit(request, sink=ListSink(), device=CPU)
        ends[compiled] = result.weights
        windows = 2 * 2 - 1  # of two epochs; the first is looked at, which runs the plain model
        assert backend.calls == (windows * 3 if compiled else 0), "three micro-batches each; validation is not compiled"
        assert backend.graphs == int(compiled), "a look does not make torch compile anew"
    assert ends[True].keys() == ends[False].keys(), "the names in a checkpoint are the model's own"
    for name, tensor in ends[True].items():
        torch.testing.assert_close(tensor, ends[False][name], rtol=1e-6, atol=1e-7)


def _compiled_on_rank(rank: int, prepared: str, compiled: bool) -> tuple[int, int, np.ndarray]:
    backend = Counting()
    setup.COMPILE_BACKEND = backend  # type: ignore[assignment]
    request = request_for(
        Path(prepared), batch=24, micro=4, workers=2, arguments={"double": False}, compile=compiled, epochs=2
    )
    job, state = start(request)
    before = state.exchange.num_collectives
    for index in range(2):
        update(job, state, Window(0, index, np.arange(24), *part(24, World(rank, 2))))
    flat = torch.cat([p.detach().flatten() for p in state.exchange.parameters])
    return backend.graphs, state.exchange.num_collectives - before, flat.numpy()


@pytest.mark.slow
def test_compile_keeps_one_exchange_a_window_and_the_same_gradients(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", 24, dtype="FP32"))
    eager, _ = run_ranks(2, _compiled_on_rank, tmp_path / "a", prepared, False)
    first, second = run_ranks(2, _compiled_on_rank, tmp_path / "b", prepared, True)
    assert (eager[0], first[0]) == (0, 1), "micro-batches that are sent and those that are not are one graph"
    assert first[1] == eager[1] == 2
    assert np.array_equal(first[2], second[2])
    np.testing.assert_allclose(first[2], eager[2], rtol=1e-5, atol=1e-6)


class Watching(nn.Module):
    """Notes whether Python's collector may run in a training forward, and where the gradients lie."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build_two_layers()
        self.enabled: list[bool] = []
        self.places: set[tuple[int, ...]] = set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.enabled.append(gc.isenabled())
            gradients = [parameter.grad for parameter in self.parameters()]
            self.places.add(tuple(0 if grad is None else grad.data_ptr() for grad in gradients))
        return self.net(inputs)


def build_watching() -> nn.Module:
    built.append(Watching())
    return built[-1]


built: list[Watching] = []


def test_no_garbage_is_collected_in_updates_and_gradients_stay_where_they_are(tmp_path: Path) -> None:
    """One buffer holds all gradients for good: nothing to set to None, and nothing to allocate at each update."""
    prepared = write_data(tmp_path, 24, dtype="FP32")
    assert gc.isenabled()
    collected: list[int] = []
    note = lambda phase, info: collected.append(len(built[-1].enabled)) if phase == "stop" else None  # noqa: E731
    gc.callbacks.append(note)
    try:
        fit(
            request_for(prepared, batch=4, micro=2, epochs=3, factory=f"{THIS}:build_watching"),
            sink=ListSink(),
            device=CPU,
        )
    finally:
        gc.callbacks.remove(note)
    model = built.pop()
    assert len(model.enabled) == 3 * 6 * 2
    assert not any(model.enabled)
    assert {12, 24, 36} <= set(collected), "between the epochs it runs"
    assert set(collected) <= {0, 12, 24, 36}
    assert len(model.places) == 1
    assert 0 not in next(iter(model.places))
    assert gc.isenabled(), "afterwards it is as it was"


def test_channels_last_gives_convolutions_such_inputs(tmp_path: Path) -> None:
    prepared = write_data(tmp_path, 8, dtype="FP32", image=True)
    for wanted in (False, True):
        job, state = start(
            request_for(prepared, batch=8, micro=4, factory=f"{THIS}:build_convolutions", channels_last=wanted)
        )
        seen: list[bool] = []
        state.model[1].register_forward_pre_hook(  # type: ignore[index]
            lambda module, inputs, seen=seen: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        update(job, state, Window(0, 0, np.arange(8), 0, 8))
        assert seen == [wanted] * 2
