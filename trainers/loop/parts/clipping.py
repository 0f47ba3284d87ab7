"""Clipping of the averaged, unscaled gradient, after the exchange: every worker computes the same.

Invariant: the returned norm is the 2-norm of the gradient as it came, before any clipping, whichever norm is bounded;
it is not finite exactly when the update must not be made.

Covered: by value, adaptive (AGC), by global norm, in this order; decided on the host, or on the device without asking
the host. Not covered: per-layer norms.
"""

from __future__ import annotations

import math

import torch

from cluster.spec.train import TrainSpec

AGC_WEIGHT_NORM_MIN = 1e-3  # so that a unit that is still zero can move (arXiv:2102.06171, section 4.1)
L2 = 2.0
EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ has the same


@torch.no_grad()
def clip_gradient(gradient: torch.Tensor, parameters: list[torch.nn.Parameter], spec: TrainSpec) -> float:
    """Clip in place and return the global norm. `gradient` is the flat one behind all `.grad`.

    A gradient that is not finite is left as it is: scaling it would spread one infinity over all layers and hide
    where it came from.
    """
    norm = clipped = float(torch.linalg.vector_norm(gradient))
    if not math.isfinite(norm):
        return norm
    if spec.clip_value is not None:
        gradient.clamp_(-spec.clip_value, spec.clip_value)
    if spec.clip_agc is not None:
        for parameter in parameters:
            adaptive_clip(parameter, spec.clip_agc)
    if spec.clip_norm is not None:
        if spec.clip_value is not None or spec.clip_agc is not None or spec.clip_norm_type != L2:
            clipped = float(torch.linalg.vector_norm(gradient, _order(spec)))
        if clipped > spec.clip_norm:
            gradient.mul_(spec.clip_norm / (clipped + EPSILON))
    return norm


@torch.no_grad()
def clip_on_device(
    gradient: torch.Tensor, parameters: list[torch.nn.Parameter], spec: TrainSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without reading anything: (norm, 1 where it is not finite else 0), both 0-d on the device.

    The factor is computed in float64, as on the host, so that both ways give the same bytes.
    """
    norm = torch.linalg.vector_norm(gradient)
    bad = (~torch.isfinite(norm)).to(torch.float32)
    if spec.clip_value is not None:
        gradient.clamp_(-spec.clip_value, spec.clip_value)
    if spec.clip_agc is not None:
        for parameter in parameters:
            adaptive_clip(parameter, spec.clip_agc)
    if spec.clip_norm is not None:
        again = spec.clip_value is not None or spec.clip_agc is not None or spec.clip_norm_type != L2
        clipped = (torch.linalg.vector_norm(gradient, _order(spec)) if again else norm).double()
        factor = spec.clip_norm / (clipped + EPSILON)
        gradient.mul_(torch.where((clipped > spec.clip_norm) & torch.isfinite(clipped), factor, 1.0))
    return norm, bad


def _order(spec: TrainSpec) -> float:
    """Of the norm that `clip_norm` bounds."""
    return float(spec.clip_norm_type)


def adaptive_clip(parameter: torch.nn.Parameter, ratio: float) -> None:
    """AGC: the gradient of each output unit is at most `ratio` times the norm of its weights."""
    gradient = parameter.grad
    if gradient is None:
        return
    weight_norm = unit_norms(parameter.detach()).clamp_min(AGC_WEIGHT_NORM_MIN)
    gradient_norm = unit_norms(gradient)
    gradient.mul_((ratio * weight_norm / gradient_norm.clamp_min(EPSILON)).clamp_max(1.0))


def unit_norms(tensor: torch.Tensor) -> torch.Tensor:
    """Norm over all axes but the first (output units); of a vector, its elements' absolute values."""
    if tensor.dim() <= 1:
        return tensor.abs()
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), keepdim=True)
