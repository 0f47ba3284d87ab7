"""`State` -> `Snapshot` and back: the eight parts of a checkpoint.

    model + buffers · EMA · optimizer · scaler · cursor · torch, numpy and Python random states of every worker

Invariant: `restore(take(state))` on a fresh state continues byte for byte; a missing part raises, it is never
replaced by a default. Every worker calls both.

Covered: the same number of workers (exact), another number (random states start anew from seed and update, buffers that
workers do not agree on are averaged; rows, global batches and schedule stay exact). Not covered: sharded models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from cluster.errors import CheckpointError, ModelError
from cluster.telemetry.events import EpochFinished
from trainers.loop.checkpointing.folder import Snapshot
from trainers.loop.distributed.collectives import gather_stacked, gather_texts, mean_of_workers
from trainers.loop.distributed.joint_failure import agreed
from trainers.loop.distributed.memory_short import caught
from trainers.loop.parts import rng
from trainers.loop.parts.callbacks import load_states, states_of
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
            **_callback_states(job, state),
            **_own_groups(job, state),
            **({"seconds": state.seconds} if job.request.train.max_time_s is not None else {}),
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
    for group, values in zip(state.optimizer.param_groups, facts.get("optimizer_groups", []), strict=False):
        group.update(values)
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
    if states := facts.get("callbacks"):
        load_states(state.callbacks, states[job.world.rank if facts["workers"] == job.world.size else 0])
    state.seconds = facts.get("seconds", 0.0)
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


def _own_groups(job: Job, state: State) -> dict[str, Any]:
    """Plain values that an optimizer of the user's may keep in its groups, and not in its state."""
    if not job.request.train.optimizer.is_own:
        return {}
    kept = []
    for group in state.optimizer.param_groups:
        plain = {key: value for key, value in group.items() if key not in ("params", "lr", "names")}
        kept.append({key: value for key, value in plain.items() if isinstance(value, bool | int | float | str)})
    return {"optimizer_groups": kept}


def _callback_states(job: Job, state: State) -> dict[str, Any]:
    """Of every worker's callbacks, in the order of ranks; nothing where the spec has none."""
    if not job.request.train.callbacks:
        return {}
    texts: list[str] = []
    error = caught(lambda: texts.append(states_of(state.callbacks)))
    agreed("Cannot keep the state of callbacks", error, job.world, job.device)
    return {"callbacks": [json.loads(text) for text in gather_texts(texts[0], job.world, job.device)]}


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
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            elif value is None or isinstance(value, int | float | str):
                numbers[f"{index}.{name}"] = value
            else:
                raise ModelError(
                    "Cannot keep the optimizer's state",
                    found=f"'{name}' of parameter {index} is a {type(value).__name__}",
                    rule="a checkpoint holds tensors, numbers and texts of `optimizer.state`",
                    remedy="Keep it as a tensor.",
                )
    return numbers, tensors


def _load_optimizer(
    optimizer: torch.optim.Optimizer, numbers: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**numbers, **tensors}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        values = optimizer.state.get(parameter, {})
        for name, value in values.items():
            # a file holds plain order; fused kernels walk through weights and moments as they lie in memory
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif isinstance(value, torch.Tensor) and value.dtype != (kept := state[place][name]).dtype:
                values[name] = kept.to(value.device)  # torch brings numbers to the parameter's datatype
