"""Whether a table is prepared in memory or past it, and what the steps of preparing need of its rows.

Invariant: a step that needs more than one row at a time says so here, as what it needs; the passes over the rows
(row_plan.py, prepare.py) follow from that, and a step without a form past memory has a rule and a remedy.

Covered: files of CSV, JSON Lines and Parquet. Not covered: other sources, which are read whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cluster.errors import DataError
from cluster.spec.data import DataSpec, FileSource
from cluster.spec.rules import SYNTHETIC
from trainers.data.read.batches import whole_bytes
from trainers.data.read.fetch import called_by_url, find_files

SHARE_OF_HOST = 0.5  # of this host's memory that preparing may take where the spec does not say
KEY_BYTES = 64  # of a row's keys, class and time, and of what ordering them takes beside


class Needs(Enum):
    """What a step needs of the rows, and so its form past memory."""

    STATISTICS = "counts and sums that merge: one pass"
    SAMPLE = "values of many rows together: fitted on rows drawn evenly"
    KEYS = "the keys of all rows in order: one more pass"
    FEATURES = "moments of the encoded training rows, which merge: one more pass"
    ALL_ROWS = "all training rows together: no form past memory"


@dataclass(frozen=True)
class Step:
    """A step of preparing that the spec asks for."""

    asked: Callable[[DataSpec], bool]
    needs: Needs
    rule: str = ""
    remedy: str = ""


STEPS = (
    Step(
        lambda spec: not (spec.split.by_hash or spec.split.column), Needs.KEYS,
        "a split past memory orders the keys of all rows, or follows from each row alone",
        "set data.split.by_hash: true",
    ),
    Step(
        lambda spec: spec.clean.drop_duplicates, Needs.KEYS,
        "repeated rows are found by the keys of all rows", "leave out data.clean.drop_duplicates",
    ),
    Step(lambda spec: spec.encode.category == "target", Needs.STATISTICS),
    Step(lambda spec: spec.select is not None and spec.select.method == "variance", Needs.FEATURES),
    Step(lambda spec: spec.select is not None and spec.select.method != "variance", Needs.SAMPLE),
    Step(
        lambda spec: spec.balance is not None and spec.balance.method in SYNTHETIC, Needs.ALL_ROWS,
        "data.balance makes rows between neighbors among all training rows",
        "set data.balance.method to class_weights, over, under or sampler",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """Whether a table is prepared in memory, and why."""

    past_memory: bool
    reason: str
    fits: bool = True
    """Whether the table fits the budget: where it does, there is nothing to say."""

    @property
    def name(self) -> str:
        return "past memory" if self.past_memory else "in memory"


def asked_steps(spec: DataSpec, needs: Needs) -> list[Step]:
    """The steps that the spec asks for and that need this."""
    return [step for step in STEPS if step.needs is needs and step.asked(spec)]


def choose_way(spec: DataSpec, host_memory_bytes: int) -> Way:
    """In memory where the table fits. Raises DataError where it does not and the spec asks for all rows together."""
    source = spec.source
    if not isinstance(source, FileSource):
        return Way(False, f"in memory: a {source.kind} source has no other way")
    paths, tests = source_files(source)
    with called_by_url([*paths, *tests]):
        needed = whole_bytes([*paths, *tests], source)
    budget = spec.memory_bytes or int(SHARE_OF_HOST * host_memory_bytes)
    of = "data.memory_bytes" if spec.memory_bytes else f"{SHARE_OF_HOST:.0%} of the memory"
    sizes = f"preparing it takes about {needed >> 20:,} MiB, and {of} is {budget >> 20:,} MiB"
    if needed <= budget:
        return Way(False, f"in memory: {sizes}")
    hindrances = asked_steps(spec, Needs.ALL_ROWS)
    if not hindrances:
        return Way(True, f"past memory, in passes over the files: {sizes}", fits=False)
    if spec.memory_bytes is None:
        said = "; ".join(f"{step.rule}: {step.remedy} to prepare it past memory" for step in hindrances)
        return Way(False, f"in memory, although {sizes}; {said}", fits=False)
    raise refusal(source.path, sizes, hindrances)


def refusal(origin: str, found: str, steps: list[Step]) -> DataError:
    """What `data.memory_bytes` has no room for."""
    remedy = " and ".join(step.remedy for step in steps) + ", or raise data.memory_bytes."
    return DataError(
        f"Cannot prepare {origin}", found=found, rule="; ".join(step.rule for step in steps),
        remedy=remedy[0].upper() + remedy[1:],
    )  # fmt: skip


def source_files(source: FileSource) -> tuple[list[Path], list[Path]]:
    """The files of training and those of the test."""
    return find_files(source.path), find_files(source.test_path) if source.test_path else []
