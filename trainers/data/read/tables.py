"""A table of any source -> cleaned, typed columns and targets.

Invariant: every feature column is numbers (float64, NaN where missing), dates as days, or texts; what was inferred
and what was left out is said in `RawData.notes`. Nothing is fitted here: the rules are the spec's alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column, Texts, Values
from cluster.errors import DataError
from cluster.spec.data import SPLITS, CsvSource, DataSpec
from cluster.spec.remedy import map_line, written_line
from trainers.data.hashing import column_keys, table_keys
from trainers.data.read.arrow_types import check_usable, lists_of, parents_of, type_notes, unusable, with_parts
from trainers.data.read.columns import make_column, read_values, to_numbers, to_texts
from trainers.data.read.delimited import settle_spec
from trainers.data.read.dialect import looks_like_row
from trainers.data.read.infer import IDENTIFIER_WHY, Inferred, infer_column, target_column
from trainers.data.read.missing_words import keep_line, missing_note, missing_words, said_missing
from trainers.data.read.raw import FREE, Layout, RawData, Role, Table


def read_table(spec: DataSpec, inspect: Callable[[pa.Table, np.ndarray | None], object] | None = None) -> RawData:
    """Read the spec's table source; `inspect` is shown it as it was read. Raises DataError."""
    from trainers.data.read.table_files import load_tables

    spec, _ = settle_spec(spec)
    table, fixed, digest = load_tables(spec.source)
    if inspect:
        inspect(table, fixed)
    return table_data(spec, table, digest=digest, origin=str(getattr(spec.source, "path", "the source")), fixed=fixed)


def table_data(
    spec: DataSpec, table: pa.Table, *, digest: str, origin: str, fixed: np.ndarray | None = None
) -> RawData:
    """A raw table -> RawData: target, split columns, cleaned features. Raises DataError."""
    spec = with_parts(spec, parents_of(table.schema))
    check_columns(spec, table.column_names, origin)
    check_usable(spec, table.schema)
    gone = missing_words(make_column(spec, spec.target), table.column(spec.target))
    rows = table.num_rows
    table, fixed, notes = _drop_rows(spec, table, fixed, origin, gone)
    notes += [note] if (note := missing_note(spec.target, gone, rows, is_target=True)) else []
    notes += type_notes(table.schema)
    _check_header_rows(table, origin)
    targets = _targets(spec, table)
    special = [name for name in (spec.split.group, spec.split.time, spec.split.column) if name]
    features, dropped, said = _features(spec, table, {spec.target, *spec.drop_columns, *special})
    notes += said
    notes += [f"column '{name}' is left out: {why}" for name, why in dropped.items()]
    if not features.values:
        raise DataError(
            f"Cannot use {origin}", found="no feature column is left", rule="a table needs a feature beside its target",
            remedy="; ".join(notes) or "Give a file with more columns.",
        )  # fmt: skip
    raw = RawData("table", targets, digest, table=features, fixed=fixed, missing_targets=gone, notes=tuple(notes))
    keys = table_keys(features.values, len(raw))
    times = None
    if spec.split.group:
        groups = to_texts(make_column(spec, spec.split.group), table.column(spec.split.group))
        notes += _check_groups(spec.split.group, groups, fixed)
        raw, keys = replace(raw, notes=tuple(notes)), column_keys(groups)
    if spec.split.time:
        times, said = _times(spec, spec.split.time, table.column(spec.split.time))
        raw = replace(raw, notes=(*raw.notes, *said))
    if spec.split.column:
        raw = replace(raw, fixed=given_splits(spec, spec.split.column, table))
    layout: Layout = "text" if set(features.roles.values()) == {"text"} else "table"
    return replace(raw, keys=keys, times=times, layout=layout)


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


def _drop_rows(
    spec: DataSpec, table: pa.Table, fixed: np.ndarray | None, origin: str, gone: dict[str, int]
) -> tuple[pa.Table, np.ndarray | None, list[str]]:
    """Rows without a target, or without a value that `clean.drop_missing_rows` asks for, are left out. `gone`: texts of
    the target that are read as missing."""
    keep = np.ones(table.num_rows, dtype=bool)
    notes: list[str] = []
    for name in (spec.target, *spec.clean.drop_missing_rows):
        there = to_texts(make_column(spec, name), table.column(name)).codes >= 0
        if lost := int((keep & ~there).sum()):
            notes.append(f"{lost} of {table.num_rows} rows are left out: '{name}' is missing")
        keep &= there
    if not keep.any():
        raise DataError(
            f"Cannot use {origin}",
            found=f"zero rows are left of {table.num_rows}"
            + "".join(f"; {note}" for note in notes)
            + (f"; {said_missing(gone)}" if gone else ""),
            rule="training needs rows with a target",
            remedy="Look at data.target, data.source.missing and data.clean.drop_missing_rows."
            + (f" {keep_line(spec.target, gone)} keeps them." if gone else ""),
        )
    if keep.all():
        return table, fixed, notes
    return table.filter(pa.array(keep)), None if fixed is None else fixed[keep], notes


def _targets(spec: DataSpec, table: pa.Table) -> np.ndarray:
    """(N,) object labels, or float64 where every value is a number."""
    texts = to_texts(make_column(spec, spec.target), table.column(spec.target))
    column = target_column(spec, texts.words)
    numbers = None if column is None else column.numbers_of(texts.words)
    return (np.array(texts.words, dtype=object) if numbers is None else numbers)[texts.codes]


def _features(spec: DataSpec, table: pa.Table, excluded: Iterable[str]) -> tuple[Table, dict[str, str], list[str]]:
    """Typed feature columns, why others were left out, and what was inferred of those that are kept."""
    dropped: dict[str, str] = {}
    said: list[str] = []
    columns: list[Column] = []
    values: dict[str, Values] = {}
    roles: dict[str, Role] = {}
    excluded = set(excluded)
    for name in table.column_names:
        if name in excluded or spec.columns.get(name) == "drop":
            continue
        if why := unusable(table.column(name).type):
            dropped[name] = why
            continue
        inferred = infer_column(spec, name, table.column(name))
        read = read_values(inferred.column, table.column(name))
        why = _why_useless(spec, read, inferred)
        if why and name not in spec.columns:
            dropped[name] = why
            continue
        columns.append(inferred.column)
        said += [inferred.note] if inferred.note else []
        if inferred.role in ("category", "text"):
            words = missing_words(inferred.column, table.column(name))
            said += [note] if (note := missing_note(name, words, table.num_rows, is_target=False)) else []
        values[name], roles[name] = read, inferred.role
    ignored = tuple(name for name in table.column_names if name not in values)
    lists = {name: parent for name, parent in lists_of(table.schema).items() if name in values}
    return Table(tuple(columns), values, roles, ignored, lists), dropped, said


def _why_useless(spec: DataSpec, values: Values, inferred: Inferred) -> str:
    missing = values.codes < 0 if isinstance(values, Texts) else np.isnan(values)
    share = float(missing.mean())
    if share == 1.0:
        return "every value is missing"
    if share > spec.max_missing:
        return f"{share:.0%} of its values are missing, data.max_missing is {spec.max_missing:.0%}"
    num_different = len(values.words) if isinstance(values, Texts) else len(np.unique(values[~missing]))
    if num_different == 1 and share == 0.0:
        return "all values are equal"
    return IDENTIFIER_WHY if inferred.identifier else ""


def _check_groups(name: str, groups: Texts, fixed: np.ndarray | None) -> list[str]:
    """Raise DataError for rows without a group; say which groups a given test file tears apart."""
    if gone := int((groups.codes < 0).sum()):
        raise DataError(
            "Cannot split the data by group", found=f"{gone} rows have no '{name}'", rule="each row needs a group",
            remedy=f"Add '{name}' to data.clean.drop_missing_rows.",
        )  # fmt: skip
    if fixed is None:
        return []
    torn = np.intersect1d(groups.codes[fixed == FREE], groups.codes[fixed != FREE])
    return [f"{len(torn)} groups of '{name}' have rows in the test file and in the other one"] if len(torn) else []


def _times(spec: DataSpec, name: str, values: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """(N,) float64 to order rows by, and what was inferred of the column. Raises DataError."""
    inferred = infer_column(spec, name, values)
    if inferred.column.kind == "text":
        words = to_texts(inferred.column, values).words
        raise DataError(
            "Cannot split the data by time",
            found=f"'{name}' holds texts such as {', '.join(repr(word) for word in words[:3]) or 'no value'}",
            rule="rows are ordered by dates in one writing, or by numbers",
            remedy="Say how its dates are written: " + written_line(name, '{date: "%d/%m/%Y %H:%M"}') + ".",
        )
    times = to_numbers(inferred.column, values)
    if np.isnan(times).any():
        raise DataError(
            "Cannot split the data by time", found=f"{int(np.isnan(times).sum())} rows have no '{name}'",
            rule="each row needs a time", remedy=f"Add '{name}' to data.clean.drop_missing_rows.",
        )  # fmt: skip
    return times, [inferred.note] if inferred.note else []


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
