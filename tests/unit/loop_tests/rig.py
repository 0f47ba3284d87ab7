"""Tiny data, tiny networks and real gloo workers for the tests of the loop."""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.spec.batch_plan import BatchPlan
from cluster.spec.model import MlpSpec
from cluster.spec.train import TrainSpec
from cluster.telemetry.events import FileSink, ListSink
from trainers.data.shards import Split, write_prepared
from trainers.loop import FitRequest, fit
from trainers.loop.checkpointing import snapshot
from trainers.loop.checkpointing.folder import Snapshot
from trainers.loop.parts.losses import IGNORE_INDEX
from trainers.loop.result import write_result
from trainers.loop.setup import set_up
from trainers.loop.state import Job, State

FEATURES, CLASSES = 8, 3
HERE = "tests.unit.loop_tests.rig"
HANG_S = 16.0  # twice what the watchdog's test allows
FAILED = ("raised", "died")
RANKS_DEADLINE_S = 240.0  # a deadline for hangs, long enough for a loaded machine


def write_data(
    folder: Path, rows: int, *, ignore_every: int = 0, dtype: str = "FP64", image: bool = False, seed: int = 3
) -> Path:
    """A prepared classification set; with `ignore_every`, every n-th training target is the ignore index."""
    rng = np.random.default_rng(seed)
    numpy_type = {"FP64": np.float64, "FP32": np.float32}[dtype]
    shape = (1, 6, 6) if image else (FEATURES,)
    inputs = rng.normal(size=(rows, *shape)).astype(numpy_type)
    targets = inputs.reshape(rows, -1)[:, :CLASSES].argmax(axis=1).astype(np.int64)
    ignored = targets.copy()
    if ignore_every:
        ignored[::ignore_every] = IGNORE_INDEX
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": Split({"x": inputs}, ignored),
        "validation": Split({"x": inputs[: max(4, rows // 3)]}, targets[: max(4, rows // 3)]),
    }
    write_prepared(
        folder,
        splits,
        task="classification",
        classes=tuple("abc"),
        inputs=(TensorSpec(name="x", datatype=dtype, shape=(-1, *shape)),),
    )
    return folder


def request_for(
    prepared: Path,
    *,
    batch: int,
    micro: int,
    workers: int = 1,
    checkpoints: Path | None = None,
    factory: str | None = f"{HERE}:build_net",
    arguments: dict[str, Any] | None = None,
    objective: str | None = None,
    objective_arguments: dict[str, Any] | None = None,
    seed: int = 7,
    **train: Any,
) -> FitRequest:
    """A request without any auto; `train` are keys of the train section."""
    spec = TrainSpec.model_validate_json(json.dumps({"precision": "fp32", "clip_norm": None, **train}))
    plan = BatchPlan(
        batch_size_global=batch,
        batch_size_per_worker=micro,
        workers=workers,
        updates_per_epoch=1,
        updates_total=1,
    )
    return FitRequest(
        train=spec,
        batch=plan,
        model=MlpSpec(family="mlp"),
        seed=seed,
        prepared=prepared,
        stage="train",
        checkpoints=checkpoints,
        model_factory=factory,
        model_arguments=arguments or {},
        objective=objective,
        objective_arguments=objective_arguments or {},
    )


def start(request: FitRequest) -> tuple[Job, State]:
    return set_up(request, ListSink(), torch.device("cpu"))


def copy_of_state(job: Job, state: State) -> Snapshot:
    """Everything that changes, for `is_same_state`."""
    return copy.deepcopy(snapshot.take(job, state))


def is_same_state(one: Snapshot, other: Snapshot) -> bool:
    a, b = one.tensors, other.tensors
    same = all(torch.equal(a[file][name], b[file][name]) for file in a for name in a[file])
    return a.keys() == b.keys() and same and one.state == other.state


def build_net(dropout: float = 0.0, norm: bool = False, double: bool = True) -> nn.Module:
    """Linear - [BatchNorm] - Tanh - Dropout - Linear."""
    layers: list[nn.Module] = [nn.Linear(FEATURES, 16)]
    if norm:
        layers.append(nn.BatchNorm1d(16))
    net = nn.Sequential(*layers, nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, CLASSES))
    return net.double() if double else net


class Drifting(torch.optim.Optimizer):
    """Counts its steps in its groups, where torch's own keep nothing that changes."""

    def __init__(self, groups: list[dict], pull: float) -> None:
        super().__init__(groups, {"lr": 0.0, "pull": pull, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            for parameter in group["params"]:
                sums = self.state[parameter].setdefault("sums", torch.zeros((), dtype=torch.float64))
                sums.add_(parameter.grad.double().abs().sum())
                parameter.sub_(parameter.grad * (group["lr"] / group["k"] / (1 + group["pull"] * float(sums))))


def make_own_optimizer(groups: list[dict], pull: float = 0.3) -> torch.optim.Optimizer:
    return Drifting(groups, pull)


def own_schedule(update: int, updates_total: int) -> float:
    return 1 / (1 + update / updates_total)


class Meddling:
    """Shrinks the weights after every update, by a number that it counts itself, on every worker."""

    ranks = "all"

    def __init__(self, factor: float = 0.99) -> None:
        self.factor, self.calls = factor, 0

    def after_update(self, training: Any) -> None:
        self.calls += 1
        with torch.no_grad():
            for parameter in training.model.parameters():
                parameter.mul_(self.factor ** (1 / self.calls))

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def build_image_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def build_tagger() -> nn.Module:
    """(n, T, 4) -> (n, T, classes)."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def build_wide() -> nn.Module:
    """Large enough that its checkpoint fills a small disk."""
    return nn.Sequential(nn.Linear(FEATURES, 512), nn.Tanh(), nn.Dropout(0.2), nn.Linear(512, CLASSES))


class Noisy(nn.Module):
    """Draws from torch, numpy and Python at every forward in training, as users' models do."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.net = build_net(dropout, norm=True, double=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.float()
        if self.training:
            noise = np.random.normal(size=tuple(inputs.shape)).astype(np.float32)
            inputs = inputs + 0.1 * torch.from_numpy(noise) + 0.05 * random.gauss(0.0, 1.0)
        return self.net(inputs)


def build_noisy(dropout: float = 0.3) -> nn.Module:
    return Noisy(dropout)


class Short(nn.Module):
    """Raises like an allocator for more rows than it "has memory" for, after forward has used batch norm and RNG."""

    def __init__(self, limit: int, rank: int | None = None) -> None:
        super().__init__()
        self.net = build_net(0.3, norm=True, double=False)
        self.limit, self.rank = limit, rank

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.net(inputs.float().repeat(2, 1))[: len(inputs)]  # batch norm needs two rows
        here = dist.get_rank() if dist.is_initialized() else 0
        if self.training and len(inputs) > self.limit and self.rank in (None, here):
            raise torch.OutOfMemoryError("out of memory: a test's limit")
        return outputs


def build_short(limit: int, rank: int | None = None) -> nn.Module:
    return Short(limit, rank)


class ShortValidation(nn.Module):
    """Has memory for `limit` rows in evaluation, or raises a user's bug there on one rank."""

    def __init__(self, limit: int, rank: int | None) -> None:
        super().__init__()
        self.net, self.limit, self.rank = build_net(), limit, rank

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training and len(inputs) > self.limit:
            raise torch.OutOfMemoryError("out of memory: a test's limit")
        if not self.training and self.rank is not None and dist.get_rank() == self.rank:
            raise ZeroDivisionError("the user's bug")
        return self.net(inputs)


def build_short_validation(limit: int = 1000, rank: int | None = None) -> nn.Module:
    return ShortValidation(limit, rank)


class Breaking(nn.Module):
    """Raises a user's bug on one rank."""

    def __init__(self, rank: int, in_backward: bool) -> None:
        super().__init__()
        self.net, self.rank, self.in_backward = build_net(), rank, in_backward

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mine = self.training and (dist.get_rank() if dist.is_initialized() else 0) == self.rank
        if mine and not self.in_backward:
            raise ZeroDivisionError("the user's bug")
        outputs = self.net(inputs)
        if mine:
            outputs.register_hook(_raise)
        return outputs


def _raise(gradient: torch.Tensor) -> None:
    raise ZeroDivisionError("the user's bug in backward")


class Hanging(nn.Module):
    """Rank 1 waits in its second training forward for something that does not come."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = build_net(), 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.training and self.calls == 2 and dist.get_rank() == 1:
            wait_for_nothing()
        return self.net(inputs)


def wait_for_nothing() -> None:
    threading.Event().wait(HANG_S)


def build_hanging() -> nn.Module:
    return Hanging()


def build_breaking(rank: int, in_backward: bool = False) -> nn.Module:
    return Breaking(rank, in_backward)


class Overheating(nn.Module):
    """The layer `hot` gives infinity from training forward number `at` on, for good."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.cold, self.hot, self.last = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.at, self.calls = at, 0
        self.hot.register_forward_hook(lambda module, inputs, output: output * self.heat())

    def heat(self) -> float:
        return float("inf") if self.calls > self.at else 1.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return self.last(self.hot(self.cold(inputs)))


def build_overheating(at: int) -> nn.Module:
    return Overheating(at)


def poisoned_losses(at: tuple[int, ...], value: float = float("inf")) -> Any:
    """An objective whose loss is multiplied by `value` in the given calls."""
    calls = {"n": 0}

    def losses(inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        items = nn.functional.cross_entropy(outputs, targets, reduction="none")
        calls["n"] += 1
        return items * value if calls["n"] - 1 in at else items

    return losses


def train_to_files(request: FitRequest, out: str) -> None:
    """In a process of its own: weights, history and events into a folder."""
    torch.set_num_threads(1)
    write_result(Path(out), fit(request, sink=FileSink(Path(out) / "events.jsonl"), device=torch.device("cpu")))


def run_ranks(
    world: int,
    function: Callable[..., Any],
    folder: Path,
    *arguments: Any,
    may_raise: bool = False,
    timeout_s: float = RANKS_DEADLINE_S,
) -> list[Any]:
    """Call `function(rank, *arguments)` on `world` real gloo workers; their results, or the exception's text as
    `("raised", class name, message)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([HERE])
    folder.mkdir(parents=True, exist_ok=True)
    pipes, processes = [], []
    for rank in range(world):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank_main, args=(rank, world, str(folder), function, arguments, sender, timeout_s)
        )
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    results = []
    for receiver in pipes:
        assert receiver.poll(RANKS_DEADLINE_S), "a worker has not answered"
        try:
            results.append(receiver.recv())
        except EOFError:
            results.append(("died",))
    for process in processes:
        process.join(RANKS_DEADLINE_S)
    raised = [item for item in results if isinstance(item, tuple) and isinstance(item[0], str) and item[0] in FAILED]
    assert may_raise or not raised, raised
    return results


def _rank_main(
    rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple, sender: Any, timeout_s: float
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))
    try:
        sender.send(function(rank, *arguments))
    except BaseException as error:  # noqa: BLE001 - what a worker raises is the result of some tests
        sender.send(("raised", type(error).__name__, str(error)))
    finally:
        dist.destroy_process_group()
