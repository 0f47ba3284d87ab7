"""From a request to `Job` and `State`: model, optimizer, readers, seeds, devices.

Invariant: all workers start with rank 0's weights and with random streams of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from cluster.errors import DataError, ModelError, SpecError
from cluster.spec.train import LossSpec
from cluster.telemetry.events import EventSink
from cluster.telemetry.view import counted
from trainers.data.shards import PreparedData, open_prepared
from trainers.loop.data.augment import Augmenter
from trainers.loop.data.loader import SplitReader, row_weights
from trainers.loop.distributed.collectives import broadcast_from_first
from trainers.loop.distributed.gradient_exchange import GradientExchange
from trainers.loop.distributed.world import current_world
from trainers.loop.parts import rng
from trainers.loop.parts.batch_norm import BatchNorms
from trainers.loop.parts.callbacks import load_callbacks
from trainers.loop.parts.ema import Ema
from trainers.loop.parts.groups import freeze
from trainers.loop.parts.losses import Objective
from trainers.loop.parts.named import load_named, look_in
from trainers.loop.parts.optimizer import build_optimizer
from trainers.loop.parts.plateau import Plateau
from trainers.loop.parts.precision import build_scaler
from trainers.loop.request import FitRequest
from trainers.loop.state import Job, State
from trainers.models import build_model

ROWS_SHOWN = 20
COMPILE_BACKEND = "inductor"  # torch.compile's default


def set_up(request: FitRequest, sink: EventSink, device: torch.device | None) -> tuple[Job, State]:
    """Build everything. Collective under a process group."""
    world = current_world()
    device = device or default_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events and random states are those of the current device
    look_in(request.code)
    data = open_prepared(request.prepared)
    _check_augmentation(request, data)
    train, validation = data.splits["train"], data.splits["validation"]
    if len(train) == 0:
        raise DataError("Cannot train", found="the train split has no rows", remedy="Look at the data section.")
    objective = None
    if request.objective:
        objective = load_named(request.objective, "FitRequest.objective")(**request.objective_arguments)
    job = Job(
        request=request,
        data=data,
        world=world,
        device=device,
        train=SplitReader(train, device, row_weights(train, request.train.loss, data.num_outputs)),
        validation=SplitReader(validation, device, row_weights(validation, LossSpec(), data.num_outputs)),
        objective=Objective(data.task, request.train.loss, objective, data.target),
        augmenter=Augmenter(request.train.augment, request.seed, data.inputs[0].item_shape, data.num_outputs),
        sink=sink,
    )
    for name, reader in (("train", job.train), ("validation", job.validation)):
        _check_finite(reader, name)
    model = build_module(request, data).to(device)
    if request.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    broadcast_from_first([*model.parameters(), *model.buffers()], world)
    rng.seed_everything(request.seed, world.rank)
    return job, new_state(job, model)


def build_module(request: FitRequest, data: PreparedData) -> nn.Module:
    """The model of a request with weights drawn from its seed, in training mode."""
    torch.manual_seed(request.seed)
    if request.model_factory:
        model = load_named(request.model_factory, "FitRequest.model_factory")(**request.model_arguments)
    else:
        model = build_model(request.model, data.inputs, data.num_outputs, data.target)
    freeze(model, request.train.optimizer)
    return model.train()


def new_state(job: Job, model: nn.Module) -> State:
    """The state before the first update."""
    train = job.request.train
    check_module(model)
    norms = BatchNorms(model, None if train.batch_norm_rows == "auto" else train.batch_norm_rows)
    return State(
        model=model,
        norms=norms,
        compiled=compile_model(model) if train.compile else None,
        deferred=defers(job.device),
        optimizer=build_optimizer(model, train.optimizer),
        exchange=GradientExchange(model, job.world, train.exchange, norms.num_sums),
        scaler=build_scaler(train.precision, job.device),
        ema=Ema(model, train.ema) if train.ema else None,
        plateau=Plateau() if train.schedule.plateau else None,
        micro_size=job.request.batch.batch_size_per_worker,
        callbacks=load_callbacks(train.callbacks, job.world.rank),
    )


def check_module(model: nn.Module) -> None:
    """What the gradient's one buffer, and checkpoints, ask of a module. Raises ModelError with the names."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ModelError(
            "Cannot train the model",
            found="none of its parameters requires a gradient",
            rule="training moves at least one parameter",
            remedy="Set requires_grad on those that are to learn.",
        )
    kinds = {str(p.dtype).removeprefix("torch."): name for name, p in trainable.items()}
    if len(kinds) > 1 or any(p.is_complex() for p in trainable.values()):
        raise ModelError(
            "Cannot train the model",
            found=f"its trainable parameters are {', '.join(f'{kind} ({name})' for kind, name in kinds.items())}",
            rule="all trainable parameters have one floating-point datatype, which no autocast changes",
            remedy="Call `.float()` of the module, and let train.precision choose what is computed in half precision.",
        )
    wide = [name for name, tensor in model.state_dict().items() if tensor.dtype == torch.complex128]
    if wide:
        raise ModelError(
            "Cannot train the model",
            found=f"{wide[0]} is complex128",
            rule="weights and checkpoints are safetensors, which hold complex64",
            remedy="Use complex64, or two real tensors.",
        )


def defers(device: torch.device) -> bool:
    """Whether reading an update's outcome at once would make the host wait for the device."""
    return device.type == "cuda"


def compile_model(model: nn.Module) -> nn.Module:
    """The model's training forward and backward by torch.compile; parameters and buffers stay the model's own. The
    exchange's hooks on parameters run as they do without it."""
    return cast(nn.Module, torch.compile(model, backend=COMPILE_BACKEND))


def default_device() -> torch.device:
    """The GPU of this process (LOCAL_RANK under torchrun), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def unknown_metric(name: str, metrics: Mapping[str, float]) -> SpecError:
    """For `train.best.metric`."""
    return SpecError(
        "Cannot choose the best epoch",
        found=f"train.best.metric is {name!r}",
        rule=f"metrics of an epoch are {', '.join(sorted(metrics))}",
        remedy="Name one of them.",
    )


def _check_finite(reader: SplitReader, name: str) -> None:
    """Of a split in memory: a larger one is not read twice, and its windows say it when they are skipped."""
    if not reader.in_memory or len(bad := reader.not_finite()) == 0:
        return
    shown = ", ".join(map(str, bad[:ROWS_SHOWN])) + (", …" if len(bad) > ROWS_SHOWN else "")
    raise DataError(
        "Cannot train",
        found=f"{counted(len(bad), 'row')} of the {name} split with NaN or infinity (counted from 0: {shown})",
        rule="every input and every quantity is a finite number",
        remedy="Mend or drop these rows in the source; data.clean fills the gaps of a table.",
        details={"split": name, "rows": bad[:ROWS_SHOWN].tolist(), "num_rows": len(bad)},
    )


def _check_augmentation(request: FitRequest, data: PreparedData) -> None:
    augment = request.train.augment
    image = len(data.inputs) == 1 and len(data.inputs[0].item_shape) in (2, 3)
    if (augment.shift_pixels or augment.cutmix_alpha) and not image:
        raise SpecError(
            "Cannot augment the training rows",
            found="train.augment asks for shifts or CutMix and the rows are not images",
            rule="shift_pixels and cutmix_alpha need one image input",
            remedy="Set both to 0.",
        )
    if (augment.mixup_alpha or augment.cutmix_alpha) and data.task != "classification":
        raise SpecError(
            "Cannot mix the training rows",
            found=f"the task is {data.task}",
            rule="MixUp and CutMix mix classes",
            remedy="Set mixup_alpha and cutmix_alpha to 0.",
        )
