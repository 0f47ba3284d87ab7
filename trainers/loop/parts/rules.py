"""Update rules that torch does not have, or not for all parameters of a network: Lion, Muon with AdamW, schedule-free.

Invariant: all that changes is in `state`, a tensor a parameter and name, and a parameter without a gradient is left as
it is, with its state: as torch's optimizers do, so that checkpoints and the loop's rules hold for them.

Covered: dense floating-point parameters. Not covered: fused kernels; complex parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

MATCH_ADAMW = "match_rms_adamw"  # updates as large as AdamW's, so that one learning rate is for both (arXiv:2502.16982)


class Lion(torch.optim.Optimizer):
    """Chen et al., "Symbolic Discovery of Optimization Algorithms" (arXiv:2302.06675), algorithm 2:

    c = beta1 · m + (1 - beta1) · g;  w = w - lr · (sign(c) + decay · w);  m = beta2 · m + (1 - beta2) · g
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float], lr: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group)
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["exp_avg"] = _like(parameter)
            averages = [self.state[p]["exp_avg"] for p in parameters]
            beta1, beta2 = group["betas"]
            signs = torch._foreach_sign(torch._foreach_lerp(averages, gradients, 1 - beta1))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, signs, alpha=-group["lr"])
            torch._foreach_lerp_(averages, gradients, 1 - beta2)


class Muon(torch.optim.Optimizer):
    """torch's Muon for groups of `matrices`, torch's AdamW for the others (https://kellerjordan.github.io/posts/muon/:
    embeddings, the output layer and vectors take another rule)."""

    def __init__(
        self, groups: list[dict], *, momentum: float, nesterov: bool, betas: tuple[float, float], eps: float,
        lr: float = 0.0,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            parameters, gradients = _with_gradients(group)
            if parameters:
                (self._step_matrices if group["matrices"] else self._step_others)(group, parameters, gradients)

    def _step_matrices(self, group: dict, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        from torch.optim import _muon

        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = _like(parameter)
        _muon.muon(
            parameters,
            gradients,
            [self.state[p]["momentum_buffer"] for p in parameters],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=(_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C),
            eps=_muon.EPS,
            ns_steps=_muon.DEFAULT_NS_STEPS,
            adjust_lr_fn=MATCH_ADAMW,
            has_complex=False,
        )

    def _step_others(self, group: dict, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        from torch.optim.adamw import adamw

        for parameter in parameters:
            if not self.state[parameter]:
                count = torch.zeros((), dtype=torch.float32)
                self.state[parameter] = {"step": count, "exp_avg": _like(parameter), "exp_avg_sq": _like(parameter)}
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class ScheduleFree(torch.optim.Optimizer):
    """Defazio et al., "The Road Less Scheduled" (arXiv:2405.15682), algorithm 1 with AdamW as the base.

    Three sequences: z takes the steps, x averages z and is what is evaluated, gradients are taken at y between them.
    The parameters hold y while training goes on, and x between `eval` and `train`.

        y = (1 - beta1) · z + beta1 · x
        z = z - lr · (g / (sqrt(v / (1 - beta2^t)) + eps) + decay · y)
        x = (1 - c) · x + c · z,  c = lr_max² / Σ lr_max²
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float], eps: float, lr: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(group, parameter, parameter.grad)

    def _move(self, group: dict, y: Tensor, gradient: Tensor) -> None:
        state, (beta1, beta2), lr = self.state[y], group["betas"], group["lr"]
        if not state:
            # torch keeps the datatype of `step` alone when it loads a state: steps, lr_max, sum of its squares
            numbers = torch.zeros(3, dtype=torch.float64)
            state.update({"z": y.detach().clone(), "exp_avg_sq": _like(y), "step": numbers})
        z, square = state["z"], state["exp_avg_sq"]
        steps, lr_max, total = state["step"].tolist()
        steps, lr_max = steps + 1, max(lr_max, lr)
        total += lr_max**2
        state["step"].copy_(torch.tensor([steps, lr_max, total], dtype=torch.float64))
        share = lr_max**2 / total if total else 0.0
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        move = (gradient / denominator).add_(y, alpha=group["weight_decay"])
        y.lerp_(z, share)
        y.add_(move, alpha=lr * (beta1 * (1 - share) - 1))
        z.sub_(move, alpha=lr)

    @torch.no_grad()
    def eval(self) -> None:
        """The parameters become x; `train` brings y back up to rounding, the loop to the byte."""
        for parameter, z, beta1 in self._moved():
            parameter.lerp_(z, 1 - 1 / beta1)

    @torch.no_grad()
    def train(self) -> None:
        for parameter, z, beta1 in self._moved():
            parameter.lerp_(z, 1 - beta1)

    def _moved(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    yield parameter, state["z"], group["betas"][0]


def _with_gradients(group: dict) -> tuple[list[Tensor], list[Tensor]]:
    there = [(p, p.grad) for p in group["params"] if p.grad is not None]
    return [p for p, _ in there], [g for _, g in there]


def _like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, memory_format=torch.preserve_format)
