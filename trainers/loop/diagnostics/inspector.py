"""Inspection of the network at an interval: norms of gradients, weights and updates, activations, dead units.

Invariant: between two inspections it costs one comparison an update; an inspection changes nothing that training reads.
Hooks exist only during the window that is inspected.

Covered: per-layer numbers, how far weights have moved since the last inspection, where a value that is not finite came
from. Not covered: what they mean (trainers/diagnose).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from cluster.telemetry.events import Diagnostics, Message
from trainers.loop.data.sampler import Window
from trainers.loop.diagnostics.utilization import Meter
from trainers.loop.distributed.collectives import gather_texts
from trainers.loop.distributed.memory_short import caught, is_out_of_memory
from trainers.loop.parts.precision import autocast
from trainers.loop.state import Job, State

INPUT = "input "  # no module has a name with a space
NAMES_SHOWN = 5
ACTIVATION_NUMBERS = ("mean", "std", "dead_share", "nonfinite_share")
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)


class Inspector:
    """Inspections of one run. Rank 0 emits; the gradients are those of the whole global batch."""

    def __init__(self, job: Job, state: State, meter: Meter | None = None) -> None:
        self.job, self.state, self.meter = job, state, meter or Meter(job)
        train = job.request.train
        self.every = train.diagnostics_every_updates
        self.clips = any(rule is not None for rule in (train.clip_norm, train.clip_value, train.clip_agc))
        self.last: list[torch.Tensor] | None = None
        """Weights after the last inspection."""
        self.said = False
        """Which parameters take no part in the loss: once."""
        self.short = False
        """Memory did not suffice for one. `due` stays what it is: all workers ask it."""

    def due(self) -> bool:
        """Whether the next update is to be inspected; one that is pending is taken for made."""
        number = self.state.cursor.update + (self.state.pending is not None)
        return self.every is not None and number % self.every == 0

    @contextmanager
    def inspect(self, window: Window) -> Iterator[None]:
        """Around an update. Does nothing where none is due."""
        if not self.due() or self.short or self.job.world.rank != 0:
            yield
            return
        number = self.state.cursor.update
        before: list[torch.Tensor] = []
        if self._lacks_memory(lambda: before.extend(p.detach().clone() for p in self.state.exchange.parameters)):
            before.clear()
            yield
            return
        activations: dict[str, torch.Tensor] = {}
        hooks = [
            module.register_forward_hook(partial(_note_activation, activations, name))
            for name, module in self.state.model.named_modules()
            if isinstance(module, ACTIVATIONS)
        ]
        self.state.unclipped = []
        try:
            with self.meter.counting(window.stop - window.start):
                yield
        finally:
            unclipped, self.state.unclipped = self.state.unclipped, None
            for hook in hooks:
                hook.remove()
        if not self.said:
            self._say_unreached()
        if self.state.cursor.update > number:  # a skipped update has nothing to show
            self._lacks_memory(lambda: self._emit(number, before, activations, unclipped or []))

    def _say_unreached(self) -> None:
        gone = self.state.exchange.unreached
        self.said = True
        named = [name for name, parameter in self.state.model.named_parameters() if id(parameter) in gone]
        if named:
            text = (
                f"the loss does not depend on {_named(named)}: no gradient reaches them, and the optimizer leaves them "
                "as they are, without weight decay, in every update in which that is so"
            )
            self.job.sink.emit(Message(level="warning", stage=self.job.request.stage, text=text))

    def _lacks_memory(self, work: Callable[[], object]) -> bool:
        """Whether memory was short for a part of an inspection: then there are no more, and training goes on."""
        if (error := caught(work)) is None:
            return False
        if not is_out_of_memory(error):
            raise error
        self.short, self.last = True, None
        text = f"memory does not suffice to inspect the layers, so that no more inspections are made: {error}"
        self.job.sink.emit(Message(level="warning", stage=self.job.request.stage, text=text))
        return True

    def _emit(
        self,
        number: int,
        before: list[torch.Tensor],
        activations: dict[str, torch.Tensor],
        unclipped: list[torch.Tensor],
    ) -> None:
        """All numbers are made on the device by fused kernels and read at once."""
        parameters = self.state.exchange.parameters
        now = [parameter.detach() for parameter in parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        since = list(torch._foreach_sub(now, self.last)) if self.last is not None else []
        groups = [gradients, before, list(torch._foreach_sub(now, before)), since]
        norms = [torch.stack(torch._foreach_norm(tensors)).float() for tensors in groups if tensors]
        norms.insert(0, torch.stack(unclipped).float() if unclipped else norms[0])
        read = torch.cat([*norms, *activations.values()]).tolist()
        names = [name for name, parameter in self.state.model.named_parameters() if parameter.requires_grad]
        values: dict[str, dict[str, float]] = {}
        for index, name in enumerate(names):
            gradient, clipped, weight, change, *whole = read[index : len(names) * len(norms) : len(names)]
            values[name] = {"gradient_norm": gradient, "weight_norm": weight, "update_ratio": _ratio(change, weight)}
            if self.clips:
                values[name]["gradient_norm_clipped"] = clipped
            if whole:
                values[name]["change_since_last_look"] = _ratio(whole[0], weight)
        rest = iter(read[len(names) * len(norms) :])
        for name in activations:
            values[name] = dict(zip(ACTIVATION_NUMBERS, rest, strict=False))
        self.last = before  # its tensors are used again: a second copy would cost as much memory
        for old, new in zip(self.last, now, strict=True):
            old.copy_(new)
        self.job.sink.emit(Diagnostics(stage=self.job.request.stage, update=number, values=values))


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more parameters"


def _ratio(change: float, weight: float) -> float:
    return change / weight if weight > 0 else 0.0


def _note_activation(
    found: dict[str, torch.Tensor], name: str, module: nn.Module, inputs: object, output: torch.Tensor
) -> None:
    """(4,) mean, spread, share of dead units and of values that are not finite, of one micro-batch.

    A unit is a channel of an image or a feature of a table or token; it is dead if it is 0 for every row.
    """
    if caught(lambda: found.update({name: _activation_numbers(output)})) is not None:
        found.pop(name, None)  # a layer that cannot be looked at: no memory, or no tensor


@torch.no_grad()
def _activation_numbers(output: torch.Tensor) -> torch.Tensor:
    """(4,), see above."""
    flat = output.detach().float()
    axis = 1 if flat.dim() > 3 else flat.dim() - 1  # (N, C, H, W); (N, F); (N, L, F)
    units = flat.transpose(0, axis).flatten(1) if flat.dim() > 1 else flat.unsqueeze(0)
    dead = (units == 0).all(dim=1).float().mean()
    bad = 1 - torch.isfinite(flat).float().mean()
    return torch.stack([flat.mean(), flat.std(), dead, bad])


def locate_nonfinite(job: Job, state: State, window: Window) -> str:
    """Which layer made a value that is not finite, as half a sentence. Collective.

    A forward of this worker's rows is done again with hooks; where all outputs are finite, the gradients tell: the
    layer nearest to the output whose gradient is not finite.
    """
    text = _in_forward(job, state, window)
    found = [item for item in gather_texts(text, job.world, job.device) if item]
    if found:
        return found[0]
    flags = {
        name: torch.isfinite(parameter.grad).all()
        for name, parameter in state.model.named_parameters()
        if parameter.grad is not None
    }
    bad = _not_finite(flags)
    return f"all outputs are finite, the gradient of {bad[-1]} is not" if bad else "the loss is not finite"


def _in_forward(job: Job, state: State, window: Window) -> str:
    """Flags of all layers of a micro-batch stay on the device and are read at once."""
    flags: dict[str, torch.Tensor] = {}

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            fine = torch.isfinite(output).all()
            flags[name] = flags[name] & fine if name in flags else fine  # a layer may run more than once

    leaves = [(name, module) for name, module in state.model.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in leaves]
    try:
        with torch.no_grad(), autocast(job.request.train.precision, job.device):
            for where in window.micro_slices(state.micro_size):
                batch = job.train.read(window.rows[where])
                flags.clear()
                for index, values in enumerate(batch.inputs):
                    flags[f"{INPUT}{index}"] = torch.isfinite(values).all()
                state.model(*batch.inputs)
                bad = _not_finite(flags)  # in the order in which layers ran
                if bad:
                    inputs = bad[0].startswith(INPUT)
                    layer = f"the output of layer {bad[0]} is the first that is not finite"
                    return "the inputs hold values that are not finite" if inputs else layer
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _not_finite(flags: dict[str, torch.Tensor]) -> list[str]:
    """Names whose flag is false."""
    if not flags:
        return []
    return [name for name, fine in zip(flags, torch.stack(list(flags.values())).tolist(), strict=True) if not fine]
