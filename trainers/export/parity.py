"""Proof that the exported file computes what torch computes, on real rows.

Invariant: parity holds only if every output agrees within the stated tolerance at every tried batch size.

Covered: batch 1, 2 and an odd size, any number of inputs. Not covered: low-precision variants, which are judged by the
gate (trainers/compress/gate.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cluster.errors import ModelError
from cluster.spec.export import ParitySpec
from trainers.evaluate.predict import predict_torch
from trainers.export.session import open_session, run_batches

BATCH_SIZES = (1, 2, 7)  # one row, the exporter's example, an odd size that no padding rule favors


def check_parity(module: nn.Module, path: Path, rows: Mapping[str, np.ndarray], spec: ParitySpec) -> dict[str, Any]:
    """Compare torch and the file on the first rows of `rows`. Raises ModelError where they differ.

    Returns:
        `{"<output>": {"max_abs_diff": float, "rows": int}, "batch_sizes": […], "absolute": …, "relative": …}`.
    """
    session = open_session(path)
    output = session.get_outputs()[0].name
    worst = 0.0
    used = [size for size in BATCH_SIZES if size <= len(next(iter(rows.values())))]
    for size in used:
        some = {name: np.array(array[:size]) for name, array in rows.items()}
        expected = predict_torch(module, some, batch_rows=size)
        got = run_batches(session, some, batch_rows=size)[output]
        worst = max(worst, _compare(output, expected, got, spec, size))
    return {
        output: {"max_abs_diff": worst, "rows": max(used)},
        "batch_sizes": used,
        "absolute": spec.absolute,
        "relative": spec.relative,
    }


def _compare(output: str, expected: np.ndarray, got: np.ndarray, spec: ParitySpec, size: int) -> float:
    attempted = f"Cannot accept the exported file: output '{output}' at batch size {size}"
    if got.shape != expected.shape:
        raise ModelError(attempted, found=f"has shape {list(got.shape)}, torch gives {list(expected.shape)}")
    if not np.isfinite(got).all():
        raise ModelError(attempted, found="holds NaN or infinity", rule="outputs must be finite")
    difference = np.abs(got - expected)
    allowed = spec.absolute + spec.relative * np.abs(expected)
    if (difference > allowed).any():
        raise ModelError(
            attempted,
            found=f"differs from torch by up to {difference.max():.3g}",
            rule=f"at most {spec.absolute:g} + {spec.relative:g} × |torch| is allowed",
            remedy="Raise export.parity only if such differences do not matter to you; else report the operator.",
        )
    return float(difference.max()) if difference.size else 0.0
