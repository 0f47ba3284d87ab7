"""A graph's rows run alone and in company (cluster/bundle/independence.py), through ONNX Runtime.

Never imports torch. Not covered: kernels of another device than the one that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.bundle.independence import ROWS_MAX, Independence, Rows, allowed_changes, measure_independence
from trainers.export.session import open_session, run_batches

SPREAD_ROWS = 4 * ROWS_MAX  # enough for a standard deviation


def float_answers(path: Path, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a float graph for real rows from all over: what a variant's answers may move by follows of it."""
    have = len(next(iter(rows.values())))
    chosen = np.linspace(0, have - 1, min(have, SPREAD_ROWS)).astype(np.int64)
    return run_batches(open_session(path), {name: np.asarray(array[chosen]) for name, array in rows.items()})


def graph_independence(
    path: Path, rows: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray], *, precision: str = "fp32"
) -> Independence:
    """Whether the rows of a graph leave one another's answers alone. BF16 runs on no CPU; the rest runs there.

    Args:
        answers: of the float graph (`float_answers`).
    """
    session = open_session(path, device="gpu" if precision == "bf16" else "cpu")

    def answer(batch: Rows) -> dict[str, np.ndarray]:
        return run_batches(session, batch)

    return measure_independence(answer, rows, allowed_changes(answers, precision))
