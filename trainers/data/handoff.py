"""What a check of files leaves for the prepare stage of the same run, and for the check of the run's next start.

    <run>/plan/  plan.json  plan.sha256  splits.npy

Invariant: taken only where the same version made it of the same bytes, in the same files of training and of test, under
the same `data` section. Anything else, also a damaged file, counts as none, and the rows are read and divided again. It
is a shortcut and no stage's output: digests do not know it.

Covered: tables of files, in memory and past it. Not covered: other sources, which have no bytes to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from cluster import __version__
from cluster.atomic import digest_json, new_folder, sha256_file
from cluster.spec.data import DataSpec, FileSource
from cluster.spec.resolve import DataFacts
from trainers.data.read.fetch import find_files
from trainers.data.read.files import digest_files
from trainers.data.read.raw import TableRules
from trainers.data.targets import Target

FOLDER, PLAN, PLAN_HASH, ASSIGNED = "plan", "plan.json", "plan.sha256", "splits.npy"
FORMAT = 3  # raise it when what is read, inferred or divided changes within a version: older plans are then not taken


@dataclass(frozen=True)
class Checked:
    """What the check stage finds of a source."""

    data: DataFacts
    splits: dict[str, int]
    """Rows of each split that has any."""
    class_rows: dict[str, int]
    headline: str
    notes: tuple[str, ...]
    """Findings, and what was inferred or left out, as sentences."""


@dataclass(frozen=True)
class Handoff:
    """A check's result, and what the prepare stage reads and divides the rows by."""

    checked: Checked
    num_rows_train: int
    """After cleaning and balancing."""
    rules: TableRules
    target: Target
    assigned: np.ndarray | None
    """(N,) int8 index into SPLITS of all rows that are kept; None where each row's follows from itself."""
    counts: tuple[tuple[int, ...], ...]
    class_counts: tuple[tuple[int, ...], ...]
    """As of a `RowPlan`."""


@dataclass(frozen=True)
class _Plan:
    """`plan.json`."""

    keys: tuple[str, ...]
    checked: Checked
    num_rows_train: int
    rules: TableRules
    target: Target
    assigned: str
    """sha256 of the file beside it; empty where there is none."""
    counts: tuple[tuple[int, ...], ...]
    class_counts: tuple[tuple[int, ...], ...]


def save_handoff(run: Path, asked: DataSpec, resolved: DataSpec, way: str, handoff: Handoff) -> None:
    """Leave it in the run's folder. `asked`: the section as the check stage had it; `resolved`: without `auto`; `way`:
    in memory or past it."""
    digest = handoff.checked.data.source_digest
    with new_folder(run / FOLDER) as folder:
        assigned = ""
        if handoff.assigned is not None:
            np.save(folder / ASSIGNED, handoff.assigned)
            assigned = sha256_file(folder / ASSIGNED)
        keys = tuple(_key(spec, digest, way) for spec in (asked, resolved))
        plan = _Plan(
            keys, handoff.checked, handoff.num_rows_train, handoff.rules, handoff.target, assigned, handoff.counts,
            handoff.class_counts,
        )  # fmt: skip
        (folder / PLAN).write_bytes(TypeAdapter(_Plan).dump_json(plan))
        (folder / PLAN_HASH).write_text(sha256_file(folder / PLAN), encoding="utf-8")


def load_handoff(run: Path, spec: DataSpec, way: str) -> Handoff | None:
    """What a check left for the same bytes and section, as it was asked or resolved; None where there is none."""
    folder = run / FOLDER
    if not isinstance(spec.source, FileSource) or not (folder / PLAN).exists():
        return None
    source = spec.source
    digest = digest_files([path for each in (source.path, source.test_path) if each for path in find_files(each)])
    try:
        if sha256_file(folder / PLAN) != (folder / PLAN_HASH).read_text(encoding="utf-8"):
            return None
        plan = TypeAdapter(_Plan).validate_json((folder / PLAN).read_bytes())
        if _key(spec, digest, way) not in plan.keys:
            return None
        assigned = None
        if plan.assigned:
            if sha256_file(folder / ASSIGNED) != plan.assigned:
                return None
            assigned = np.load(folder / ASSIGNED, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return Handoff(plan.checked, plan.num_rows_train, plan.rules, plan.target, assigned, plan.counts, plan.class_counts)


def _key(spec: DataSpec, digest: str, way: str) -> str:
    """`digest` is that of all files in one row; the number of those for training says where those of the test begin."""
    num_files = len(find_files(spec.source.path)) if isinstance(spec.source, FileSource) else 0
    return digest_json([FORMAT, __version__, spec.model_dump(mode="json"), digest, num_files, way])
