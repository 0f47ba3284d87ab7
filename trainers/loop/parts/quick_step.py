"""The fused step of Adam, AdamW and SGD without torch's own preparations, and steps that leave parameters out.

Invariant: the same kernel on the same tensors as `optimizer.step()`, so the same bytes; a parameter that is left out is
one whose `grad` torch finds None: neither it nor its moments and count change.

Covered: fused optimizers. Not covered: others, whose own `step` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Call = Callable[[torch.Tensor | None], None]
"""Steps one group; the argument is `skip`."""


@contextmanager
def left_out(optimizer: torch.optim.Optimizer, without: frozenset[int]) -> Iterator[None]:
    """`optimizer.step()` inside finds no gradient of the parameters with these `id`s."""
    gone = [p for group in optimizer.param_groups for p in group["params"] if id(p) in without] if without else []
    gradients = [parameter.grad for parameter in gone]
    for parameter in gone:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(gone, gradients, strict=True):
            parameter.grad = gradient


class QuickStep:
    """`optimizer.step()` of a fused optimizer: the same kernel on the same tensors, gathered once instead of at every
    step (torch groups all tensors by device and datatype each time, which takes longer than the kernel of a small
    network). `skip` on the device makes the kernel leave everything as it is, so that the host need not know.

    Moments start at zero, as torch's do. SGD's momentum starts at zero too; torch sets it to the first gradient, which
    is what the first step makes of zero.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._of: object = None
        self._calls: list[Call] = []
        self._fewer: tuple[frozenset[int], list[Call]] = (frozenset(), [])

    @property
    def ready(self) -> bool:
        """Whether there is such a kernel; else `step` is the optimizer's own."""
        if self._of is not self.optimizer.state:  # another object after load_state_dict
            self._gather()
        return bool(self._calls)

    def step(self, skip: torch.Tensor | None = None, without: frozenset[int] = frozenset()) -> None:
        """`skip`: 0-d float32 on the device, 1 to change nothing; needs `ready`. `without`: `id` of parameters that the
        step leaves as they are."""
        if not self.ready:
            assert skip is None, "without the kernel the host decides"
            with left_out(self.optimizer, without):
                self.optimizer.step()
            return
        for call in self._calls_without(without) if without else self._calls:
            call(skip)

    def _gather(self) -> None:
        groups, self._of = self.optimizer.param_groups, self.optimizer.state
        self._calls, self._fewer = [], (frozenset(), [])
        if self._kernel and all(group.get("fused") and not group["maximize"] for group in groups):
            self._calls = self._make_calls(frozenset())

    @property
    def _kernel(self) -> str:
        """Of our own classes alone: a class of the user's may have another `step`."""
        return getattr(self.optimizer, "kernel", "")

    def _make_calls(self, without: frozenset[int]) -> list[Call]:
        make = _adam_call if self._kernel == "adam" else _sgd_call
        return [make(group, self.optimizer.state, without) for group in self.optimizer.param_groups]

    def _calls_without(self, without: frozenset[int]) -> list[Call]:
        """Those of the last step are kept: mostly it is the same parameters."""
        if self._fewer[0] != without:
            self._fewer = (without, self._make_calls(without))
        return self._fewer[1]


def _make_adam_state(group: dict, state: dict) -> None:
    for parameter in group["params"]:
        if not state.get(parameter):
            zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
            count = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state[parameter] = {"step": count, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}


def _adam_call(group: dict, state: dict, without: frozenset[int]) -> Call:
    """Adam and AdamW."""
    _make_adam_state(group, state)
    parameters = [parameter for parameter in group["params"] if id(parameter) not in without]
    if not parameters:
        return _nothing
    if not without:  # views of one tensor: counting is one operation
        steps = torch.stack([state[p]["step"].reshape(()) for p in parameters])
        for parameter, step in zip(parameters, steps.unbind(), strict=True):
            state[parameter]["step"] = step
    counted = [steps] if not without else [state[p]["step"] for p in parameters]
    gradients = [p.grad for p in parameters]
    averages, squares = ([state[p][name] for p in parameters] for name in ("exp_avg", "exp_avg_sq"))
    views, (beta1, beta2) = [state[p]["step"] for p in parameters], group["betas"]
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_

    def call(skip: torch.Tensor | None) -> None:
        for count in counted:
            count.add_(1 if skip is None else 1 - skip)
        kernel(
            parameters,
            gradients,
            averages,
            squares,
            [],
            views,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )

    return call


def _sgd_call(group: dict, state: dict, without: frozenset[int]) -> Call:
    momentum = group["momentum"]
    for parameter in group["params"] if momentum else ():
        if state.get(parameter, {}).get("momentum_buffer") is None:
            state[parameter] = {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}
    parameters = [parameter for parameter in group["params"] if id(parameter) not in without]
    if not parameters:
        return _nothing
    gradients = [p.grad for p in parameters]
    buffers = [state[p]["momentum_buffer"] for p in parameters] if momentum else []

    def call(skip: torch.Tensor | None) -> None:
        torch._fused_sgd_(
            parameters,
            gradients,
            buffers,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
            found_inf=skip,
        )

    return call


def _nothing(skip: torch.Tensor | None) -> None:
    """All parameters of the group are left out."""
