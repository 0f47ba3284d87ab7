"""Proof that the exported file computes what torch computes, on real rows.

Invariant: parity holds only if every output agrees within the stated tolerance at every tried batch size.

Covered: batch 1, 2 and an odd size, any number of inputs and outputs. Not covered: low-precision variants, which are
judged by the gate (trainers/compress/accuracy_gate.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.bundle.target import TargetTransform
from cluster.errors import ModelError
from cluster.spec.export import ParitySpec
from trainers.export.session import open_session, run_batches
from trainers.models.predict import tensors_of

BATCH_SIZES = (1, 2, 7)  # one row, the exporter's example, an odd size that no padding rule favors


def check_parity(
    module: nn.Module,
    path: Path,
    rows: Mapping[str, np.ndarray],
    spec: ParitySpec,
    target: TargetTransform | None = None,
) -> dict[str, Any]:
    """Compare torch and the file on the first rows of `rows`, every output. Raises ModelError where they differ.

    `target`: of a quantity, whose unit and level the tolerance follows.

    Returns:
        `{"<output>": {"max_abs_diff": float, "rows": int}, …, "batch_sizes": […], "absolute": …, "relative": …}`.
    """
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    used = [size for size in BATCH_SIZES if size <= len(next(iter(rows.values())))]
    worst = dict.fromkeys(names, 0.0)
    for size in used:
        some = {name: np.array(array[:size]) for name, array in rows.items()}
        expected = torch_outputs(module, some)
        if len(expected) != len(names):
            raise ModelError(
                "Cannot accept the exported file",
                found=f"it has outputs {', '.join(names)}, torch gives {len(expected)}",
                rule="each output is compared",
            )
        got = run_batches(session, some, batch_rows=size)
        for name, want in zip(names, expected, strict=True):
            allowed = allowed_difference(want, (spec.absolute, spec.relative), target)
            worst[name] = max(worst[name], _compare(f"'{name}' at batch size {size}", want, got[name], allowed))
    return {
        **{name: {"max_abs_diff": worst[name], "rows": max(used)} for name in names},
        "batch_sizes": used,
        "absolute": spec.absolute,
        "relative": spec.relative,
    }


def torch_outputs(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """All outputs of one batch, in eval mode, in the order in which forward gives them."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            found = module(*tensors_of(inputs, slice(None)))
    finally:
        module.train(was_training)
    listed = found if isinstance(found, tuple | list) else (found,)
    return tuple(one.float().numpy() if one.is_floating_point() else one.numpy() for one in listed)


def allowed_difference(
    expected: np.ndarray, tolerance: tuple[float, float], target: TargetTransform | None
) -> np.ndarray:
    """Largest difference from each value, by an absolute and a relative tolerance."""
    if target is not None:
        return target.allowed(expected, *tolerance)
    return tolerance[0] + tolerance[1] * np.abs(expected)


def _compare(output: str, expected: np.ndarray, got: np.ndarray, allowed: np.ndarray) -> float:
    attempted = f"Cannot accept the exported file: output {output}"
    if got.shape != expected.shape:
        raise ModelError(attempted, found=f"has shape {list(got.shape)}, torch gives {list(expected.shape)}")
    if not np.isfinite(got).all():
        raise ModelError(attempted, found="holds NaN or infinity", rule="outputs must be finite")
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if (difference > allowed).any():
        raise ModelError(
            attempted,
            found=f"differs from torch by up to {difference.max():.3g}",
            rule=f"export.parity allows at most {allowed[difference > allowed].max():.3g} there",
            remedy="Raise export.parity only if such differences do not matter to you; else report the operator.",
        )
    return float(difference.max()) if difference.size else 0.0
