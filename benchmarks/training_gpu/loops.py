"""The same training twice: by our loop, and by hand. Same network object, rows, order of operations and settings.

Both: autocast (fp16 with a GradScaler), channels_last for images, fused AdamW, clipping by global norm, rows gathered
on the host from memory, pinned, copied without waiting; one micro-batch an update; no reads of the device. The
hand-written one does what such loops do and no more.

Covered: CUDA, and a CPU for dry runs. Not covered: several workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.training_gpu import networks

LEARNING_RATE, CLIP_NORM = 1e-4, 1.0
HERE = "benchmarks.training_gpu.networks"


@dataclass(frozen=True)
class Case:
    """One network in one precision."""

    network: str
    """`resnet50` or `bert_base`."""
    precision: str
    batch: int
    scale: int = 1
    """Divides widths, depths and image sides: 1 is the real thing, more is a dry run."""
    compile: bool = False
    """Both sides by torch.compile."""

    @property
    def factory(self) -> str:
        return f"{HERE}:build_{self.network}"

    @property
    def images(self) -> bool:
        return self.network == "resnet50"


def write_rows(folder: Path, case: Case, rows: int) -> Path:
    """Random rows as prepared data: what is learned does not matter for time."""
    from cluster.bundle.signature import TensorSpec
    from trainers.data.shards import Split, write_prepared

    rng = np.random.default_rng(0)
    if case.images:
        side = networks.IMAGE // case.scale
        inputs = rng.standard_normal((rows, 3, side, side), dtype=np.float32)
        spec, classes = TensorSpec(name="x", datatype="FP32", shape=(-1, 3, side, side)), networks.CLASSES
    else:
        inputs = rng.integers(0, networks.VOCABULARY, (rows, networks.TOKENS))
        spec, classes = TensorSpec(name="x", datatype="INT64", shape=(-1, networks.TOKENS)), networks.LABELS
    targets = rng.integers(0, classes, rows)
    write_prepared(
        folder,
        {"train": Split({"x": inputs}, targets), "validation": Split({"x": inputs[:2]}, targets[:2])},
        task="classification",
        classes=tuple(str(number) for number in range(classes)),
        inputs=(spec,),
    )
    return folder


def request_of(case: Case, prepared: Path):  # type: ignore[no-untyped-def]  # imported inside: a peer needs no pydantic
    """Our training of a case."""
    from cluster.spec.batch_plan import BatchPlan
    from cluster.spec.model import MlpSpec
    from cluster.spec.train import TrainSpec
    from trainers.loop import FitRequest

    options = {
        "epochs": 1000,
        "precision": case.precision,
        "channels_last": case.images,
        "compile": case.compile,
        "clip_norm": CLIP_NORM,
        "optimizer": {"learning_rate": LEARNING_RATE},
        "schedule": {"name": "constant", "warmup": 0.0},
        "diagnostics_every_updates": None,
    }
    plan = BatchPlan(
        batch_size_global=case.batch,
        batch_size_per_worker=case.batch,
        workers=1,
        updates_per_epoch=1,
        updates_total=1,
    )
    return FitRequest(
        train=TrainSpec.model_validate_json(json.dumps(options)),
        batch=plan,
        model=MlpSpec(family="mlp"),
        seed=7,
        prepared=prepared,
        stage="train",
        checkpoints=None,
        model_factory=case.factory,
        model_arguments={"scale": case.scale},
    )


def ours(case: Case, prepared: Path, device: torch.device, updates: int, warm_up: int) -> float:
    """Rows a second over `updates` steady updates of the engine."""
    return _timed(our_update(case, prepared, device), case, device, updates, warm_up)


def our_update(case: Case, prepared: Path, device: torch.device) -> Callable[[], None]:
    """One update of the engine, as its loop does it."""
    from cluster.telemetry.events import ListSink
    from trainers.loop.loop import remaining_windows
    from trainers.loop.setup import set_up
    from trainers.loop.step import finish_update, start_update

    job, state = set_up(request_of(case, prepared), ListSink(), device)
    windows = _endless(lambda: remaining_windows(job, state), lambda: _next_epoch(state))

    def one() -> None:
        start_update(job, state, next(windows))
        if not state.deferred:
            finish_update(job, state)

    return one


def by_hand(case: Case, prepared: Path, device: torch.device, updates: int, warm_up: int) -> float:
    """The same by hand."""
    return _timed(update_by_hand(case, prepared, device), case, device, updates, warm_up)


def update_by_hand(case: Case, prepared: Path, device: torch.device) -> Callable[[], None]:
    """One update of a hand-written loop."""
    from trainers.data.shards import open_prepared
    from trainers.loop.setup import COMPILE_BACKEND

    split = open_prepared(prepared).splits["train"]
    x, y = (torch.from_numpy(np.array(a)) for a in (split.inputs["x"], split.targets))
    torch.manual_seed(7)
    model = getattr(networks, f"build_{case.network}")(case.scale).to(device).train()
    if case.images:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=case.precision == "fp16")
    forward = torch.compile(model, backend=COMPILE_BACKEND) if case.compile else model
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case.precision, torch.float32)
    rows = _endless(lambda: iter(torch.randperm(len(x)).split(case.batch)), lambda: None)

    def one() -> None:
        index = next(rows)
        inputs, targets = (_to(tensor.index_select(0, index), device) for tensor in (x, y))
        if case.images:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=case.precision != "fp32"):
            loss = F.cross_entropy(forward(inputs), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, foreach=True)
        scaler.step(optimizer)
        scaler.update()

    return one


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _next_epoch(state) -> None:  # type: ignore[no-untyped-def]
    state.cursor.epoch, state.cursor.window = state.cursor.epoch + 1, 0


def _endless(make: Callable[[], Iterator], between: Callable[[], None]) -> Iterator:
    while True:
        yield from make()
        between()


def _timed(one: Callable[[], None], case: Case, device: torch.device, updates: int, warm_up: int) -> float:
    for _ in range(warm_up):
        one()
    wait_for(device)
    started = time.perf_counter()
    for _ in range(updates):
        one()
    wait_for(device)
    return updates * case.batch / (time.perf_counter() - started)


def wait_for(device: torch.device) -> None:
    """Until a GPU has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
