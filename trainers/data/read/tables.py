"""A table of any source -> cleaned, typed columns and targets, in memory or a batch at a time.

Invariant: a table in memory is one batch of what larger ones have many of; every feature column is numbers (float64,
NaN where missing), dates as days, or texts; what was inferred or left out is in the notes. Nothing is fitted here: the
rules are the spec's alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column, Texts
from cluster.errors import DataError
from cluster.spec.data import SPLITS, CsvSource, DataSpec
from cluster.spec.remedy import map_line, written_line
from trainers.data.hashing import column_keys, table_keys
from trainers.data.read.arrow_types import check_usable, parents_of, type_notes, with_parts
from trainers.data.read.column_scan import TableScan, feature_columns, kept_rows, scan_batch
from trainers.data.read.columns import make_column, read_values, to_numbers, to_texts
from trainers.data.read.delimited import settle_spec
from trainers.data.read.dialect import looks_like_row
from trainers.data.read.infer import Inferred, target_column
from trainers.data.read.not_finite import refuse_infinite
from trainers.data.read.raw import FREE, RawData, TableRules, TypedRows


@dataclass(frozen=True)
class Origin:
    """Where a table in memory comes from."""

    name: str
    digest: str
    fixed: np.ndarray | None = None
    """(N,) int8 index into SPLITS where the files say the split, else FREE."""
    numbers: np.ndarray | None = None
    """(N,) uint64 of the rows, file and row in it; None: of one file."""


def read_table(
    spec: DataSpec,
    inspect: Callable[[pa.Table, np.ndarray | None], object] | None = None,
    rules: TableRules | None = None,
) -> RawData:
    """Read the spec's table source; `inspect` takes it as it was read. Raises DataError."""
    from trainers.data.read.table_files import load_tables

    spec, _ = settle_spec(spec)
    table, numbers, fixed, digest = load_tables(spec.source)
    if inspect:
        inspect(table, fixed)
    origin = Origin(str(getattr(spec.source, "path", "the source")), digest, fixed, numbers)
    return table_data(spec, table, origin, rules)


def table_data(spec: DataSpec, table: pa.Table, origin: Origin, rules: TableRules | None = None) -> RawData:
    """A table in memory, as one batch -> RawData: target, split columns, cleaned features.

    `rules`: of an earlier reading of the same bytes. Raises DataError.
    """
    spec = with_parts(spec, parents_of(table.schema))
    check_columns(spec, table.column_names, origin.name)
    check_usable(spec, table.schema)
    kept, lost = kept_rows(spec, table)
    rows = table if kept.all() else table.filter(pa.array(kept))
    numbers = np.arange(len(table), dtype=np.uint64) if origin.numbers is None else origin.numbers
    fixed = None if origin.fixed is None else origin.fixed[kept]
    missing: dict[str, int] = {}
    if rules is None:
        scan = scan_batch(spec, table, rows, lost)
        scan.check_rows(spec, origin.name)
        _check_header_rows(rows, origin.name)
        missing = dict(scan.seen[spec.target].gone)
        target_column(spec, list(scan.seen[spec.target].words))
        rules = table_rules(spec, scan, origin.name, type_notes(table.schema))
    typed = type_rows(rules, rows, numbers[kept], fixed)
    return RawData(
        "text" if set(rules.roles.values()) == {"text"} else "table",
        typed,
        origin.digest,
        rules=rules,
        missing_targets=missing,
        notes=(*rules.notes, *_torn_groups(spec, typed.groups, fixed)),
    )


def table_rules(spec: DataSpec, scan: TableScan, origin: str, notes: Sequence[str] = ()) -> TableRules:
    """How rows are read, by what pass one found. `notes`: of the columns' types. Raises DataError."""
    features, said = feature_columns(spec, scan)
    said = [*scan.notes(spec), *notes, *said]
    if not features:
        raise DataError(
            f"Cannot use {origin}", found="no feature column is left", rule="a table needs a feature beside its target",
            remedy="; ".join(said) or "Give a file with more columns.",
        )  # fmt: skip
    time = None
    if spec.split.time:
        inferred = _time_column(spec, spec.split.time, scan)
        time, said = inferred.column, [*said, inferred.note] if inferred.note else said
    return TableRules(
        spec,
        tuple(inferred.column for inferred in features.values()),
        {name: inferred.role for name, inferred in features.items()},
        tuple(name for name in scan.seen if name not in features),
        {name: parent for name, parent in scan.lists.items() if name in features},
        time,
        tuple(said),
    )


def type_rows(rules: TableRules, rows: pa.Table, numbers: np.ndarray, fixed: np.ndarray | None = None) -> TypedRows:
    """Rows that are kept, read by the rules; `numbers` and `fixed` of them. Raises DataError."""
    split = rules.spec.split
    try:
        values = {column.name: read_values(column, _column(rows, column.name)) for column in rules.columns}
    except DataError:
        refuse_infinite(rules.columns, lambda name: _column(rows, name), numbers)
        raise
    groups = None
    if split.group:
        groups = to_texts(make_column(rules.spec, split.group), rows.column(split.group))
        if gone := int((groups.codes < 0).sum()):
            raise DataError(
                "Cannot split the data by group", found=f"{gone} rows have no '{split.group}'",
                rule="each row needs a group", remedy=f"Add '{split.group}' to data.clean.drop_missing_rows.",
            )  # fmt: skip
    return TypedRows(
        values,
        to_texts(make_column(rules.spec, rules.spec.target), rows.column(rules.spec.target)),
        table_keys(values, len(rows)) if groups is None else column_keys(groups),
        numbers,
        given_splits(rules.spec, split.column, rows) if split.column else fixed,
        _times(rules.time, rows) if rules.time else None,
        groups,
    )


def _column(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of the batch; JSON lines may lack it."""
    return rows.column(name) if name in rows.column_names else pa.chunked_array([pa.nulls(len(rows), pa.string())])


def check_columns(spec: DataSpec, names: list[str], origin: str) -> None:
    """Raise DataError for a column of the spec that the table lacks, and for two columns of one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"Cannot read {origin}", found=f"column '{twice[0]}' is there twice",
            remedy=_without_header(spec, names) or "Rename one of them.",
        )  # fmt: skip
    wanted: dict[str, str] = {spec.target: "data.target"}
    named: tuple[tuple[str, Iterable[str]], ...] = (
        ("drop_columns", spec.drop_columns),
        ("columns", spec.columns),
        ("clean.map_values", spec.clean.map_values),
        ("clean.drop_missing_rows", spec.clean.drop_missing_rows),
    )
    for place, columns in named:
        wanted |= dict.fromkeys(columns, f"data.{place}")
    for place in ("group", "time", "column"):
        if name := getattr(spec.split, place):
            wanted[name] = f"data.split.{place}"
    for name, place in wanted.items():
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise DataError(
                f"Cannot read {origin}",
                found=f"it has no column '{name}', which {place} names",
                rule="its columns are " + ", ".join(names[:20]) + (", …" if len(names) > 20 else ""),
                remedy=f"Did you mean '{close[0]}'?" if close else _without_header(spec, names) or f"Mend {place}.",
            )


def _without_header(spec: DataSpec, names: list[str]) -> str:
    """The remedy where a row was taken for the header, else empty."""
    source = spec.source
    if not isinstance(source, CsvSource) or not source.header or source.names or not looks_like_row(names):
        return ""
    return "The first line may be a row: set data.source.header: false, and data.source.names."


def _torn_groups(spec: DataSpec, groups: Texts | None, fixed: np.ndarray | None) -> list[str]:
    """Which groups a given test file tears apart, as a sentence."""
    if groups is None or fixed is None:
        return []
    torn = np.intersect1d(groups.codes[fixed == FREE], groups.codes[fixed != FREE])
    where = f"groups of '{spec.split.group}' have rows in the test file and in the other one"
    return [f"{len(torn)} {where}"] if len(torn) else []


def _time_column(spec: DataSpec, name: str, scan: TableScan) -> Inferred:
    """How the column is read that rows are ordered by. Raises DataError."""
    seen = scan.seen[name]
    inferred = seen.infer(spec, name, scan.rows)
    if inferred.column.kind == "text":
        words = list(seen.words)
        raise DataError(
            "Cannot split the data by time",
            found=f"'{name}' holds texts such as {', '.join(repr(word) for word in words[:3]) or 'no value'}",
            rule="rows are ordered by dates in one writing, or by numbers",
            remedy="Say how its dates are written: " + written_line(name, '{date: "%d/%m/%Y %H:%M"}') + ".",
        )
    return inferred


def _times(column: Column, rows: pa.Table) -> np.ndarray:
    """(N,) float64 to order rows by. Raises DataError."""
    times = to_numbers(column, rows.column(column.name))
    if np.isnan(times).any():
        raise DataError(
            "Cannot split the data by time", found=f"{int(np.isnan(times).sum())} rows have no '{column.name}'",
            rule="each row needs a time", remedy=f"Add '{column.name}' to data.clean.drop_missing_rows.",
        )  # fmt: skip
    return times


def given_splits(spec: DataSpec, name: str, table: pa.Table) -> np.ndarray:
    """(N,) int8 index into SPLITS, by the column's words as the spec reads them. Raises DataError."""
    texts = to_texts(make_column(spec, name), table.column(name))
    unknown, known = sorted(set(texts.words) - set(SPLITS)), spec.clean.map_values.get(name, {})
    if unknown or (texts.codes < 0).any():
        raise DataError(
            f"Cannot split the data by column '{name}'",
            found=f"it holds {unknown[0]!r}" if unknown else "some rows have no value",
            rule="its values are " + ", ".join(SPLITS),
            remedy=f"Map it to one of them: {map_line(name, {**known, unknown[0]: 'train'})}."
            if unknown
            else f"Add '{name}' to data.clean.drop_missing_rows.",
        )
    return np.array([SPLITS.index(word) for word in texts.words], dtype=np.int8)[texts.codes]


def _check_header_rows(table: pa.Table, origin: str) -> None:
    """Raise DataError for a row that repeats the header: two files were joined."""
    mask = None
    for name in table.column_names[:3]:
        column = table.column(name)
        if not pa.types.is_string(column.type):
            return
        same = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), name), False)
        mask = same if mask is None else pc.and_(mask, same)
    if mask is not None and len(table.column_names) > 1 and pc.any(mask).as_py():
        row = int(pc.index(mask, True).as_py())
        raise DataError(
            f"Cannot read {origin}",
            found=f"data row {row + 1} repeats the header",
            rule="the header stands in the first line alone",
            remedy="Two files were joined: remove that line.",
        )


__all__ = ["FREE", "check_columns", "make_column", "read_table", "table_data", "to_numbers", "to_texts"]
