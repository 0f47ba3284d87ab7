"""Columns of every Arrow type -> columns of the types that the rest of the room reads: numbers, texts, dates, booleans.

    decimals -> float64              times of day, durations -> seconds as float64       large and view texts -> texts
    timestamps with a zone -> UTC    a struct -> its fields, `name.field`                lists of numbers of one length
                                                                                         -> their items, `name[0]`, …

Invariant: what a column becomes follows from the schema, and for lists from their lengths, so that a table and its
batches become the same. What has no such form stays as it is, and `unusable` says so in one sentence: a table with such
a column is used without it.

Covered: Parquet, JSON Lines, tables of Python functions. Not covered: texts, which are read by rules (columns.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet

from cluster.errors import DataError
from cluster.spec.data import DataSpec

PART_OF, LIST_OF, NOTE = b"manta.part_of", b"manta.list_of", b"manta.note"
"""Keys of a field's metadata: the column of the source that it was made of, the list that it is an item of, and what
its numbers are."""
ITEMS_MAX = 4_096  # of a list: a column each
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def plain_table(table: pa.Table, lengths: Mapping[str, int] | None = None) -> pa.Table:
    """The table with columns of plain types. `lengths`: of lists, by column; None: they are measured here."""
    lengths = list_lengths([table]) if lengths is None else lengths
    if all(_is_plain(field.type) for field in table.schema):
        return table
    arrays: list[pa.ChunkedArray] = []
    fields: list[pa.Field] = []
    for field, column in zip(table.schema, table.columns, strict=True):
        for name, array, metadata in _plain_columns(field.name, column, lengths):
            made = {**metadata, PART_OF: field.name.encode()} if name != field.name else metadata or field.metadata
            arrays.append(array)
            fields.append(pa.field(name, array.type, metadata=made))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=table.schema.metadata))


def plain_schema(schema: pa.Schema, lengths: Mapping[str, int]) -> pa.Schema:
    """The schema of the plain table."""
    return plain_table(schema.empty_table(), lengths).schema


def list_lengths(tables: Iterable[pa.Table]) -> dict[str, int]:
    """Columns whose lists of numbers all have one length, and that length; columns of structs by `name.field`."""
    found: dict[str, set[int]] = {}
    for table in tables:
        for name, column in _lists(table):
            lengths = pc.unique(pc.list_value_length(column)).drop_null().to_pylist()
            found.setdefault(name, set()).update(lengths)
    return {
        name: lengths.pop() for name, lengths in found.items() if len(lengths) == 1 and 0 < max(lengths) <= ITEMS_MAX
    }


def file_list_lengths(paths: Iterable[Path]) -> dict[str, int]:
    """`list_lengths` of Parquet files: of their columns with lists alone, a row group at a time."""
    return list_lengths(_list_columns(paths))


def unusable(kind: pa.DataType) -> str:
    """Why a column of this type is left out; empty for one that can be used."""
    if _is_plain(kind):
        return ""
    what = (
        "lists of several lengths, or of other things than numbers" if _is_list(kind) else "no numbers, texts or dates"
    )
    return f"it holds {what} (its type is {_short(kind)})"


def check_usable(spec: DataSpec, schema: pa.Schema) -> None:
    """Raise DataError for a column that the spec names, and that no value can be read from."""
    special = (spec.target, spec.split.group, spec.split.time, spec.split.column, *spec.clean.drop_missing_rows)
    kinds = (name for name, kind in spec.columns.items() if kind != "drop")
    for name in (*special, *kinds):
        if name is not None and name in schema.names and (why := unusable(schema.field(name).type)):
            raise DataError(
                f"Cannot use column '{name}'",
                found=why,
                rule="a column holds numbers, texts, booleans, dates, or lists of numbers of one length",
                remedy="Store it as another type, or take it out of the spec: it is then left out.",
            )


def usable_table(table: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """The table without columns that cannot be used, and why each of them is left out."""
    gone = {field.name: why for field in table.schema if (why := unusable(field.type))}
    return (table.drop_columns([*gone]) if gone else table), gone


def lists_of(schema: pa.Schema) -> dict[str, str]:
    """Column that is an item of a list -> the list's name."""
    items = {field.name: (field.metadata or {}).get(LIST_OF) for field in schema}
    return {name: parent.decode() for name, parent in items.items() if parent}


def with_parts(spec: DataSpec, parents: Mapping[str, str]) -> DataSpec:
    """The spec with a struct's or list's name in `drop_columns` and `columns` as the names of its parts.

    `parents`: column -> the column of the source that it is made of.
    """
    parts: dict[str, list[str]] = {}
    for name, parent in parents.items():
        if name != parent:
            parts.setdefault(parent, []).append(name)
    if not parts:
        return spec
    drop = tuple(part for name in spec.drop_columns for part in parts.get(name, [name]))
    columns = {part: kind for name, kind in spec.columns.items() for part in parts.get(name, [name])}
    return spec.model_copy(update={"drop_columns": drop, "columns": columns})


def parents_of(schema: pa.Schema) -> dict[str, str]:
    """Column -> the column of the source that it is made of."""
    return {field.name: (field.metadata or {}).get(PART_OF, field.name.encode()).decode() for field in schema}


def type_notes(schema: pa.Schema) -> list[str]:
    """What a person should know of a plain table's numbers, as sentences."""
    notes = ((field.name, (field.metadata or {}).get(NOTE)) for field in schema)
    return [f"column '{name}' is read as {note.decode()}" for name, note in notes if note]


def _is_plain(kind: pa.DataType) -> bool:
    """A type that goes on as it is."""
    if pa.types.is_dictionary(kind):
        return bool(pa.types.is_string(kind.value_type))
    number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    moment = pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)
    return bool(number or moment or pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_null(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _plain_columns(
    name: str, column: pa.ChunkedArray, lengths: Mapping[str, int]
) -> Iterator[tuple[str, pa.ChunkedArray, dict[bytes, bytes]]]:
    """(name, values, metadata) of the columns that one becomes."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        storage = [chunk.storage for chunk in column.chunks]
        yield from _plain_columns(name, pa.chunked_array(storage, kind.storage_type), lengths)
    elif pa.types.is_struct(kind):
        for field, values in zip(kind, pa.table({name: column}).flatten().columns, strict=True):
            yield from _plain_columns(f"{name}.{field.name}", values, lengths)
    elif _is_list(kind) and name in lengths and _is_number(kind.value_type):
        for place in range(lengths[name]):
            item = pc.list_element(column, place) if len(column) else pa.chunked_array([], kind.value_type)
            yield f"{name}[{place}]", item.cast(pa.float64()), {LIST_OF: name.encode()}
    else:
        note = "seconds since midnight" if pa.types.is_time(kind) else "seconds" if pa.types.is_duration(kind) else ""
        yield name, _plain_values(column), {NOTE: f"{note} (its type is {kind})".encode()} if note else {}


def _plain_values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind) and not pa.types.is_string(kind.value_type):
        return _plain_values(column.cast(kind.value_type))
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        return column.cast(pa.float64())
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_timestamp(kind) and kind.tz:
        return column.cast(pa.timestamp(kind.unit))
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        whole = pa.int32() if pa.types.is_time32(kind) else pa.int64()
        return pc.divide(column.cast(whole).cast(pa.float64()), float(UNITS[kind.unit]))
    return column


def _lists(table: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """The table's columns of lists, those in structs too."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for field, column in zip(table.schema, table.columns, strict=True):
        if _is_list(field.type):
            yield field.name, column


def _has_list(kind: pa.DataType) -> bool:
    return _is_list(kind) or (pa.types.is_struct(kind) and any(_has_list(field.type) for field in kind))


def _list_columns(paths: Iterable[Path]) -> Iterator[pa.Table]:
    for path in paths:
        file = pa_parquet.ParquetFile(path)
        names = [field.name for field in file.schema_arrow if _has_list(field.type)]
        for group in range(file.num_row_groups if names else 0):
            yield file.read_row_group(group, columns=names, use_threads=False)


def _short(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= 60 else text[:59] + "…"
