"""`data.quality.fail_on`: findings of the quality report that stop a run in its check stage.

Invariant: a finding whose remedy the spec already follows does not stop the run, so that following the report's advice
always mends it.

Covered: table sources, in memory and past it, with the test file as the test table. Not covered: images and arrays
(an error says so).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import DataError
from cluster.spec.data import SPLITS, CsvSource, DataSpec, FileSource, JsonlSource, ParquetSource
from trainers.data.quality.check_files import check_batches
from trainers.data.quality.findings import SEVERITIES, Finding
from trainers.data.quality.report import QualityReport, check_table
from trainers.data.read.arrow_types import check_usable, parents_of, with_parts
from trainers.data.read.batches import read_batches
from trainers.data.read.columns import make_column, to_texts
from trainers.data.read.delimited import settle_spec
from trainers.data.read.fetch import find_files
from trainers.data.read.tables import check_columns
from trainers.data.sample import decoded

SHOWN_MAX = 5
OF_CLASSES = ("class_balance", "label_noise")  # what a quantity of whole numbers, as the spec says it is, has not


def check_quality(spec: DataSpec, table: pa.Table, fixed: np.ndarray | None) -> QualityReport:
    """The report of the columns that the spec uses. Raises DataError with the findings that `fail_on` names."""
    spec, _ = settle_spec(spec)
    spec = with_parts(spec, parents_of(table.schema))
    check_columns(spec, table.column_names, "the source")
    check_usable(spec, table.schema)
    table = _as_read(spec, table)
    test = None
    if fixed is not None and (fixed == SPLITS.index("test")).any():
        given = fixed == SPLITS.index("test")
        table, test = table.filter(pa.array(~given)), table.filter(pa.array(given))
    return _passed(spec, check_table(table, spec.target, test=test))


def check_quality_files(spec: DataSpec) -> QualityReport:
    """`check_quality` of the spec's files in one pass over each, in bounded memory. Raises DataError."""
    spec, _ = settle_spec(spec)
    source = spec.source
    assert isinstance(source, CsvSource | JsonlSource | ParquetSource)
    tests = _batches(spec, source, source.test_path) if source.test_path else None
    return _passed(spec, check_batches(_batches(spec, source, source.path), spec.target, test=tests))


def _batches(spec: DataSpec, source: FileSource, path: str) -> Iterator[pa.Table]:
    for batch in read_batches(find_files(path), source):
        yield _as_read(spec, decoded(batch))


def _passed(spec: DataSpec, report: QualityReport) -> QualityReport:
    if spec.task == "regression":
        report = replace(report, findings=tuple(one for one in report.findings if one.rule not in OF_CLASSES))
    stopping = [finding for finding in report.findings if _stops(spec, finding)]
    if stopping:
        raise DataError(
            f"Cannot use {getattr(spec.source, 'path', 'the source')}",
            found="; ".join(finding.sentence for finding in stopping[:SHOWN_MAX])
            + (f" (and {len(stopping) - SHOWN_MAX} more)" if len(stopping) > SHOWN_MAX else ""),
            rule=f"data.quality.fail_on is {_words(spec.quality.fail_on)}",
            remedy="; ".join(dict.fromkeys(finding.fix for finding in stopping[:SHOWN_MAX])),
            details={"findings": [vars(finding) for finding in stopping]},
        )
    return report


def refuse_arrays(origin: str) -> None:
    """Raise DataError: there is no report of images and arrays."""
    raise DataError(
        f"Cannot check the quality of the {origin} source",
        found="data.quality.fail_on is set and the source yields arrays",
        rule="the quality report covers tables",
        remedy="Remove data.quality.fail_on.",
    )


def _as_read(spec: DataSpec, table: pa.Table) -> pa.Table:
    """Without dropped columns, with mapped values and the spec's missing words in place."""
    spec = with_parts(spec, parents_of(table.schema))
    gone = {*spec.drop_columns, *(name for name, kind in spec.columns.items() if kind == "drop")}
    special = {spec.split.group, spec.split.time, spec.split.column}
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name in gone or name in special:
            continue
        values = table.column(name)
        if name in spec.clean.map_values or (isinstance(spec.source, CsvSource) and pa.types.is_string(values.type)):
            column = make_column(spec, name)
            texts = to_texts(column, values)
            words = pa.array([*map(column.plain_word, texts.words), None], pa.string())
            columns[name] = words.take(pa.array(np.where(texts.codes < 0, len(texts.words), texts.codes)))
        else:
            columns[name] = values
    return pa.table(columns)


def _stops(spec: DataSpec, finding: Finding) -> bool:
    asked = spec.quality.fail_on
    if isinstance(asked, str):
        named = SEVERITIES.index(finding.severity) <= SEVERITIES.index(asked)
    else:
        named = finding.rule in asked
    return named and not _followed(spec, finding)


def _followed(spec: DataSpec, finding: Finding) -> bool:
    """Whether the spec already says what the finding's remedy says, in a way the report cannot see."""
    clean, declared = spec.clean, finding.column in spec.columns
    return {
        "duplicate_rows": clean.drop_duplicates,
        "outliers": any(path in finding.fix for path in _limits(spec)),
        "infinite": clean.infinite == "missing",
        "class_balance": spec.balance is not None,
        "mixed_types": declared,
        "date_like": declared,
        "codes": declared,
        "units": declared,
        "white_space": True,
    }.get(finding.rule, False)


def _limits(spec: DataSpec) -> list[str]:
    """What the spec has against far values: paths of the remedies."""
    limits = ["data.clean.clip_iqr"] * (spec.clean.clip_iqr is not None)
    return limits + ["data.encode.number"] * (spec.encode.number in ("quantile", "piecewise_linear"))


def _words(asked: str | tuple[str, ...]) -> str:
    return asked if isinstance(asked, str) else f"[{', '.join(asked)}]"
