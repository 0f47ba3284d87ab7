"""Looks into the network at an interval: norms of gradients, weights and updates, activations, dead units.

Invariant: between two looks it costs one comparison an update; a look changes nothing that training reads. Hooks
exist only during the window that is looked at.

Covered: per-layer numbers, where a value that is not finite came from. Not covered: what they mean
(trainers/diagnose).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from cluster.telemetry.events import Diagnostics
from trainers.loop.exchange import texts_over_workers
from trainers.loop.precision import autocast
from trainers.loop.sampler import Window
from trainers.loop.state import Job, State

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)


class Inspector:
    """One run's looks. Rank 0 emits; the gradients that it sees are those of the whole global batch."""

    def __init__(self, job: Job, state: State) -> None:
        self.job, self.state = job, state
        self.every = job.request.train.diagnostics_every_updates

    @contextmanager
    def look(self) -> Iterator[None]:
        """Around an update. Does nothing when no look is due."""
        due = self.every is not None and self.state.cursor.update % self.every == 0
        if not due or self.job.world.rank != 0:
            yield
            return
        number = self.state.cursor.update
        before = [parameter.detach().clone() for parameter in self.state.exchange.parameters]
        activations: dict[str, dict[str, torch.Tensor]] = {}
        hooks = [
            module.register_forward_hook(partial(_note_activation, activations, name))
            for name, module in self.state.model.named_modules()
            if isinstance(module, ACTIVATIONS)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if self.state.cursor.update > number:  # a skipped update has nothing to show
            self._emit(number, before, activations)

    def _emit(self, number: int, before: list[torch.Tensor], activations: dict[str, dict[str, torch.Tensor]]) -> None:
        parameters = self.state.exchange.parameters
        now = [parameter.detach() for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = [
            torch.stack(torch._foreach_norm(tensors)).tolist()
            for tensors in (gradients, before, torch._foreach_sub(now, before))
        ]
        names = [name for name, parameter in self.state.model.named_parameters() if parameter.requires_grad]
        values: dict[str, dict[str, float]] = {}
        for name, gradient, weight, change in zip(names, *norms, strict=True):
            values[name] = {
                "gradient_norm": gradient,
                "weight_norm": weight,
                "update_ratio": change / weight if weight > 0 else 0.0,
            }
        for name, tensors in activations.items():
            values[name] = {key: float(tensor) for key, tensor in tensors.items()}
        self.job.sink.emit(Diagnostics(stage=self.job.request.stage, update=number, values=values))


def _note_activation(
    found: dict[str, dict[str, torch.Tensor]], name: str, module: nn.Module, inputs: object, output: torch.Tensor
) -> None:
    """Mean, spread and share of dead units of one micro-batch. A unit (axis 1) is dead if it is 0 for every row."""
    with torch.no_grad():
        flat = output.detach().float()
        units = flat.transpose(0, 1).flatten(1) if flat.dim() > 1 else flat.unsqueeze(0)
        found[name] = {"mean": flat.mean(), "std": flat.std(), "dead_share": (units == 0).all(dim=1).float().mean()}


def locate_nonfinite(job: Job, state: State, window: Window) -> str:
    """Which layer made a value that is not finite, as half a sentence. Collective.

    A forward of this worker's rows is done again with hooks; where all outputs are finite, the gradients tell: the
    layer nearest to the output whose gradient is not finite.
    """
    text = _in_forward(job, state, window)
    found = [item for item in texts_over_workers(text, job.world, job.device) if item]
    if found:
        return found[0]
    bad = [
        name
        for name, parameter in state.model.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    return f"all outputs are finite, the gradient of {bad[-1]} is not" if bad else "the loss is not finite"


def _in_forward(job: Job, state: State, window: Window) -> str:
    bad: list[str] = []

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
            bad.append(name)

    leaves = [(name, module) for name, module in state.model.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in leaves]
    try:
        with torch.no_grad(), autocast(job.request.train.precision, job.device):
            for where in window.micro_slices(state.micro_size):
                batch = job.train.read(window.rows[where])
                if any(not bool(torch.isfinite(x).all()) for x in batch.inputs if x.is_floating_point()):
                    return "the inputs hold values that are not finite"
                state.model(*batch.inputs)
                if bad:
                    return f"the output of layer {bad[0]} is the first that is not finite"
    finally:
        for hook in hooks:
            hook.remove()
    return ""
