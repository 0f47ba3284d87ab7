"""Memory that does not suffice, with an allocator that counts what is alive: a failed attempt must leave nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from cluster.errors import MemoryShortError
from cluster.telemetry.events import Diagnostics, ListSink, Message
from tests.unit.loop_tests.rig import CLASSES, FEATURES, copy_of_state, is_same_state, request_for, run_ranks, start
from tests.unit.loop_tests.rig import write_data as write
from trainers.loop import fit
from trainers.loop.data.sampler import Window
from trainers.loop.evaluate import evaluate_split
from trainers.loop.loop import collector_paused
from trainers.loop.parts.quick_step import QuickStep
from trainers.loop.step import update
from trainers.loop.tuner.batch_size_finder import probe_micro_batch

SHARE = 48
CPU = torch.device("cpu")


class Arena:
    """An allocator of so many rows: a block counts from when it is made until nothing refers to it."""

    def __init__(self, rows: int) -> None:
        self.rows, self.used = rows, 0

    def take(self, rows: int) -> Block:
        if self.used + rows > self.rows:
            raise torch.OutOfMemoryError(f"out of memory: {self.used} of {self.rows} rows are in use, {rows} asked for")
        return Block(self, rows)


class Block:
    """What is alive."""

    def __init__(self, arena: Arena, rows: int) -> None:
        self.arena, self.rows = arena, rows
        arena.used += rows

    def __del__(self) -> None:
        self.arena.used -= self.rows


class Kept(torch.autograd.Function):
    """Identity that holds a block until its backward has run, which may need one more."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, arena: Arena, more: int) -> torch.Tensor:
        ctx.block, ctx.arena, ctx.more = arena.take(len(inputs)), arena, more
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        block = ctx.arena.take(ctx.more * len(gradient))
        ctx.block = None
        del block
        return gradient, None, None


class Rationed(nn.Module):
    """Layers that each hold their rows; where memory is short, some frames keep the error: a cycle."""

    def __init__(self, rows: int, layers: int, more: int, cycle: bool) -> None:
        super().__init__()
        self.arena, self.more, self.cycle = Arena(rows), more, cycle
        self.layers = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(layers))
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = inputs
        for layer in self.layers:
            outputs = self.keep(layer(outputs))
        return self.last(outputs)

    def keep(self, outputs: torch.Tensor) -> torch.Tensor:
        block = self.arena.take(0)  # in this frame, as a temporary tensor of a kernel is
        try:
            return Kept.apply(outputs, self.arena, self.more)
        except torch.OutOfMemoryError as error:
            held = error if self.cycle else None
            raise RuntimeError("CUDA out of memory: a kernel's way to say it") from held or error
        finally:
            del block


def build_rationed(rows: int, layers: int, more: int, cycle: bool) -> nn.Module:
    return Rationed(rows, layers, more, cycle)


def rationed(seed: int) -> tuple[dict[str, Any], int]:
    """Arguments of a network whose memory is drawn, and the most rows of a micro-batch that fit."""
    draw = random.Random(seed)
    layers, more = draw.randint(1, 4), draw.randint(0, 2)
    fits = draw.randint(1, SHARE - 1)
    arguments = {"rows": fits * (layers + more), "layers": layers, "more": more, "cycle": draw.random() < 0.5}
    return arguments, fits


def request_of(seed: int, folder: Path, micro: int) -> Any:
    prepared = folder / "data"
    if not prepared.exists():
        write(prepared, SHARE, dtype="FP32")
    return request_for(
        prepared, batch=SHARE, micro=micro, factory=f"{__name__}:build_rationed", arguments=rationed(seed)[0]
    )


@pytest.fixture
def inside_an_epoch() -> Iterator[None]:
    """The collector is off, and what was there before is not looked at."""
    with collector_paused():
        yield


@pytest.mark.usefixtures("inside_an_epoch")
@pytest.mark.parametrize("seed", range(20))
def test_recovery_ends_at_the_largest_micro_batch_that_fits(tmp_path: Path, seed: int) -> None:
    """In the update, and in the finder, which begins with two rows."""
    window, fits = Window(0, 0, np.arange(SHARE), 0, SHARE), rationed(seed)[1]
    ends = []
    for micro in (SHARE, fits):
        job, state = start(request_of(seed, tmp_path, micro))
        update(job, state, window)
        assert state.micro_size == fits
        assert state.model.arena.used == 0
        ends.append(copy_of_state(job, state))
    assert is_same_state(*ends), "the update is that of a run which began with this micro-batch"
    job, state = start(request_of(seed, tmp_path, SHARE))
    found = probe_micro_batch(job, state, timed=False).rows
    assert fits - found <= fits // 32
    assert found <= fits


def test_validation_ends_at_rows_that_fit_and_remembers_them(tmp_path: Path) -> None:
    job, state = start(request_of(1, tmp_path, 1))
    used: list[int] = []
    fits = state.model.arena.rows = 5
    state.model.layers[0].register_forward_hook(lambda module, inputs, output: used.append(len(output)))
    whole = evaluate_split(job, state, job.validation, "validation")
    first = len(used)
    assert evaluate_split(job, state, job.validation, "validation") == whole
    assert max(used[first:]) <= fits < max(used[:first])


def _short_elsewhere(rank: int, prepared: str, where: str) -> Any:
    """One of two workers is short of memory outside of forward and backward."""
    mine = rank == (0 if where == "inspection" else 1)
    request = request_for(
        Path(prepared),
        batch=16,
        micro=8,
        workers=2,
        arguments={"double": False},
        epochs=2,
        exchange={"wire": "bf16"},
        diagnostics_every_updates=1,
    )
    if mine:
        _make_short(where)
    sink = ListSink()
    result = fit(request, sink=sink, device=CPU)
    said = [event.text for event in sink.events if isinstance(event, Message)]
    return result.micro_batch, result.updates, said, sum(isinstance(event, Diagnostics) for event in sink.events)


def _make_short(where: str) -> None:
    """In this worker's process alone."""
    calls = {"n": 0}

    def short_at(number: int, real: Any, dtype: torch.dtype | None = None) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls["n"] += dtype is None or arguments[0].dtype == dtype
            if calls["n"] == number:
                raise torch.OutOfMemoryError("out of memory: a test's limit")
            return real(*arguments, **named)

        return call

    if where == "moments":
        torch.zeros_like = short_at(1, torch.zeros_like)
    elif where == "step":
        QuickStep.step = short_at(2, QuickStep.step)
    elif where == "last step":
        QuickStep.step = short_at(4, QuickStep.step)
    elif where == "exchange":
        dist.all_reduce = short_at(1, dist.all_reduce, torch.bfloat16)  # the first bucket
    else:
        torch._foreach_sub = short_at(1, torch._foreach_sub)


@pytest.mark.parametrize("where", ["moments", "step", "last step"])
def test_an_optimizer_without_memory_ends_all_workers_with_its_cause(tmp_path: Path, where: str) -> None:
    prepared = str(write(tmp_path / "data", 32, dtype="FP32"))
    other, culprit = run_ranks(2, _short_elsewhere, tmp_path / "ranks", prepared, where, may_raise=True)
    assert culprit[:2] == ("raised", MemoryShortError.__name__)
    assert "memory does not suffice for AdamW over 195 parameters" in culprit[2]
    assert other[:2] == ("raised", "PeerFailedError")
    assert "worker 1 failed" in other[2]


@pytest.mark.parametrize("where", ["exchange", "inspection"])
def test_an_exchange_or_an_inspection_without_memory_ends_no_run(tmp_path: Path, where: str) -> None:
    prepared = str(write(tmp_path / "data", 32, dtype="FP32"))
    results = run_ranks(2, _short_elsewhere, tmp_path / "ranks", prepared, where)
    assert [result[1] for result in results] == [4, 4]
    told = [text for text in results[0][2] if "inspect" in text]
    assert (len(told), results[0][3] == 0) == ((1, True) if where == "inspection" else (0, False))
