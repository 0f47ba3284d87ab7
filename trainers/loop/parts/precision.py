"""fp32, bf16 and fp16: the autocast context, the loss scaler, and what counts as a scaler's skip.

Invariant: gradients are unscaled exactly once an update, after all of them are in and before any clipping;
`scaler.update` runs after every window, also after a skipped one.

Covered: CPU and CUDA. Not covered: fp8.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from cluster.errors import DivergedError

SCALE_MIN = 1e-4  # a scale that fell this far hides further drops: the run diverges
AUTOCAST_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of every forward and loss."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPE[precision])


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """fp16 needs one; the others have float32's range."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def found_inf(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """The flag that `unscale_` left: a fused optimizer's `step` is called even on a skip, so that hooking `step`
    cannot tell."""
    flags = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    return torch.stack([flag.float() for flag in flags.values()]).sum()


def scale_of(scaler: torch.amp.GradScaler | None, device: torch.device) -> torch.Tensor:
    """0-d, the loss scale (1 without a scaler), without reading it; the scaler's own `get_scale` reads."""
    scale = scaler._scale if scaler is not None else None
    return scale.detach() if scale is not None else torch.ones((), device=device)


def check_scale(scale: float, locate: Callable[[], str]) -> None:
    """Raise DivergedError when the scale has collapsed. `locate` names the layer whose values were not finite."""
    if scale < SCALE_MIN:
        raise DivergedError(
            "Cannot go on in fp16",
            found=f"the loss scale fell to {scale:g}: gradients overflow at every scale; {locate()}",
            rule=f"a usable scale is at least {SCALE_MIN:g}",
            remedy="Lower train.optimizer.learning_rate, or use train.precision bf16 or fp32.",
        )
