"""`State` -> `Snapshot` and back: the eight parts of a checkpoint.

    model + buffers · EMA · optimizer · scaler · cursor · torch, numpy and Python random states of every worker

Invariant: `restore(take(state))` on a fresh state continues byte for byte; a missing part raises, it is never
replaced by a default. Every worker calls both.

Covered: the same number of workers (exact), another number (random states start anew from seed and update, buffers that
workers do not agree on are averaged; rows, global batches and schedule stay exact). Not covered: sharded models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from cluster.errors import CheckpointError
from cluster.telemetry.events import EpochFinished
from trainers.loop.checkpointing.folder import Snapshot
from trainers.loop.distributed.collectives import gather_stacked, mean_of_workers
from trainers.loop.parts import rng
from trainers.loop.parts.plateau import Plateau, epochs_without
from trainers.loop.state import Best, Cursor, Job, State


def take(job: Job, state: State) -> Snapshot:
    """Everything that changes. Collective: blocks until all workers take part. The same on all of them."""
    numbers, tensors = _optimizer_parts(state.optimizer)
    parts = {
        "model": dict(state.model.state_dict()),
        "optimizer": tensors,
        "workers": _worker_parts(job, state),
    }
    if state.ema:
        parts["ema"] = state.ema.state()
    if state.best.weights:
        parts["best"] = state.best.weights
    best = {key: value for key, value in vars(state.best).items() if key != "weights"}
    return Snapshot(
        parts,
        {
            "cursor": asdict(state.cursor),
            "optimizer": numbers,
            "scaler": state.scaler.state_dict() if state.scaler else None,
            "plateau": asdict(state.plateau) if state.plateau else None,
            "best": best,
            "history": [event.model_dump() for event in state.history],
            "micro_size": state.micro_size,
            "micro_asked": job.request.train.batch_size_per_worker,
            "early_stopping": _early_stopping(job),
            "micro_reason": state.micro_reason,
            "learning_rate_found": state.learning_rate_found,
            "left_out": sorted(list(pair) for pair in state.left_out),
            "rollbacks": state.rollbacks,
            "stopped_early": state.stopped_early,
            "workers": job.world.size,
        },
    )


def restore(job: Job, state: State, snapshot: Snapshot) -> None:
    """Make `state` what was taken. Raises CheckpointError for a missing part."""
    try:
        _restore(job, state, snapshot)
    except KeyError as error:
        raise CheckpointError(
            "Cannot resume",
            found=f"the checkpoint has no {error}",
            rule="all parts of the state are needed to go on as if nothing had happened",
            remedy="Remove this checkpoint, or start anew with --fresh.",
        ) from error


@contextmanager
def preserved(job: Job, state: State) -> Iterator[None]:
    """What is tried inside leaves nothing behind: `state` is afterwards what it was before. Collective."""
    before = take(job, state)
    held = {file: {name: t.clone() for name, t in tensors.items()} for file, tensors in before.tensors.items()}
    try:
        yield
    finally:
        restore(job, state, Snapshot(held, before.state))
        state.exchange.clear()
        job.train.forget_ahead()


def _restore(job: Job, state: State, snapshot: Snapshot) -> None:
    parts, facts = snapshot.tensors, snapshot.state
    state.model.load_state_dict(parts["model"], strict=True)
    _load_optimizer(state.optimizer, facts["optimizer"], parts["optimizer"])
    if state.ema:
        state.ema.load(parts["ema"])
    if state.scaler:
        state.scaler.load_state_dict(facts["scaler"])
    if state.plateau:
        state.plateau = Plateau(**facts["plateau"])
    state.cursor = Cursor(**facts["cursor"])
    state.cursor.nonfinite = [(epoch, window) for epoch, window in facts["cursor"]["nonfinite"]]  # JSON has no tuples
    state.best = Best(**facts["best"], weights=dict(parts.get("best", {})))
    state.history = [EpochFinished(**event) for event in facts["history"]]
    state.micro_size, state.micro_reason = facts["micro_size"], facts["micro_reason"]
    state.learning_rate_found = facts["learning_rate_found"]
    state.left_out = {(epoch, window) for epoch, window in facts["left_out"]}
    state.rollbacks = facts["rollbacks"]
    state.stopped_early = facts["stopped_early"]
    _restore_worker(job, state, parts["workers"], facts["workers"])
    _follow_spec(job, state, facts)


def _follow_spec(job: Job, state: State, facts: dict[str, Any]) -> None:
    """What a changed spec makes of a training that goes on (cluster/spec/resume_rules.py)."""
    train = job.request.train
    if job.request.sizing is None and facts.get("micro_asked", train.batch_size_per_worker) != (
        train.batch_size_per_worker
    ):
        state.micro_size, state.micro_reason = job.request.batch.batch_size_per_worker, ""
    if facts.get("early_stopping", _early_stopping(job)) != _early_stopping(job):
        state.best.epochs_without = epochs_without(train, state.history)
        stopping = train.early_stopping
        state.stopped_early = stopping is not None and state.best.epochs_without >= stopping.patience


def _early_stopping(job: Job) -> dict[str, Any] | None:
    stopping = job.request.train.early_stopping
    return stopping.model_dump() if stopping else None


def _worker_parts(job: Job, state: State) -> dict[str, torch.Tensor]:
    """What differs between workers: (W, …) each."""
    own = {f"rng.{name}": tensor for name, tensor in rng.capture().items()}
    if job.world.size > 1:  # with one worker the model file has them
        own |= {f"buffer.{name}": buffer for name, buffer in state.model.named_buffers()}
    return {name: gather_stacked(tensor, job.world, job.device) for name, tensor in own.items()}


def _restore_worker(job: Job, state: State, parts: dict[str, torch.Tensor], workers: int) -> None:
    buffers = {name.removeprefix("buffer."): rows for name, rows in parts.items() if name.startswith("buffer.")}
    states = {name.removeprefix("rng."): rows for name, rows in parts.items() if name.startswith("rng.")}
    same = workers == job.world.size
    with torch.no_grad():
        for name, buffer in state.model.named_buffers():
            if name in buffers:
                rows = buffers[name]
                buffer.copy_(rows[job.world.rank] if same else mean_of_workers(rows))
    if same:
        rng.restore({name: rows[job.world.rank] for name, rows in states.items()})
    else:
        rng.seed_everything(job.request.seed + 1 + state.cursor.update, job.world.rank)


def _optimizer_parts(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Numbers and tensors of the optimizer's state, named `parameter index.name`."""
    numbers: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            (tensors if isinstance(value, torch.Tensor) else numbers)[f"{index}.{name}"] = value
    return numbers, tensors


def _load_optimizer(
    optimizer: torch.optim.Optimizer, numbers: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**numbers, **tensors}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # a file holds plain order; fused kernels walk through weights and moments as they lie in memory
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
