"""One column of a table: its reading rules, and an Arrow column as texts or numbers by these rules.

Invariant: the rules are `cluster.bundle.transforms.Column`, the same that serving reads rows with; each different word
is parsed once.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column, Texts, Values
from cluster.bundle.transforms.dates import days_of_numbers
from cluster.spec.data import CsvSource, DataSpec
from cluster.spec.date_format import EPOCHS


def make_column(spec: DataSpec, name: str, kind: str = "text") -> Column:
    """The reading rules of a column, as the spec says them."""
    source = spec.source
    csv = source if isinstance(source, CsvSource) else None
    return Column(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        missing=_missing(csv, kind) if csv else ("",),
        mapped=spec.clean.map_values.get(name, {}),
        infinite=spec.clean.infinite,
        thousands=csv.thousands if csv else "",
        decimal=csv.decimal if csv else ".",
    )


def _missing(source: CsvSource, kind: str) -> tuple[str, ...]:
    """Texts that mean "no value": where quotes tell values, those without quotes are null before a column is read."""
    return ("",) if source.quoted_missing == "value" and kind == "text" else source.missing


def plain_numbers(source: object, table: pa.Table) -> pa.Table:
    """A table of texts with the source's decimal marks and separators as plain numbers: for who reads words alone."""
    if not isinstance(source, CsvSource) or (source.decimal == "." and not source.thousands):
        return table
    for place, name in enumerate(table.column_names):
        if not pa.types.is_string(table.column(name).type):
            continue
        column = Column(name=name, kind="text", missing=(), thousands=source.thousands, decimal=source.decimal)
        encoded = whole_array(table.column(name)).dictionary_encode()
        words = pa.array([column.plain_word(word.strip()) for word in encoded.dictionary.to_pylist()], pa.string())
        plain = pa.DictionaryArray.from_arrays(encoded.indices, words).cast(pa.string())
        table = table.set_column(place, name, plain)
    return table


def to_texts(column: Column, values: pa.ChunkedArray) -> Texts:
    """An Arrow column as cleaned texts: each different word is cleaned once."""
    whole = whole_array(values)
    if pa.types.is_dictionary(whole.type):
        whole = whole.cast(whole.type.value_type)
    encoded = whole.dictionary_encode() if isinstance(whole, pa.Array) else whole
    words = [column.parse_text(word, row) for row, word in enumerate(encoded.dictionary.to_pylist())]
    index: dict[str, int] = {}
    places = [-1 if word is None else index.setdefault(word, len(index)) for word in words]
    codes = pc.fill_null(encoded.indices, len(places)).to_numpy(zero_copy_only=False)
    return Texts(np.array([*places, -1], dtype=np.int32)[codes], tuple(index))


def to_numbers(column: Column, values: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column as float64 by the column's rules. Raises DataError that names the first bad row."""
    whole = whole_array(values)
    number = pa.types.is_floating(whole.type) or pa.types.is_integer(whole.type)
    if pa.types.is_boolean(whole.type) or (number and (column.kind == "number" or column.date in EPOCHS)):
        numbers = pc.fill_null(whole.cast(pa.float64(), safe=False), float("nan")).to_numpy(zero_copy_only=False)
        if column.kind == "date":
            return days_of_numbers(numbers, column.date)
        bad = np.flatnonzero(np.isinf(numbers))
        if len(bad) == 0:
            return numbers
        column.parse_number(float("inf"), int(bad[0]))  # raises, unless infinity means missing
        return np.where(np.isinf(numbers), np.nan, numbers)
    if column.kind == "date" and pa.types.is_temporal(whole.type):
        return column.from_rows(whole.cast(pa.timestamp("us"), safe=False).to_pylist())  # type: ignore[return-value]
    encoded = (whole.cast(whole.type.value_type) if pa.types.is_dictionary(whole.type) else whole).dictionary_encode()
    codes = pc.fill_null(encoded.indices, len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    parsed = column.from_rows(encoded.dictionary.to_pylist())
    return np.array([*parsed, np.nan], dtype=np.float64)[codes]  # type: ignore[misc]


def numbers_there(values: pa.ChunkedArray) -> np.ndarray:
    """The values of a number column that are there, in their own type; true and false as 1 and 0."""
    plain = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
    return whole_array(pc.drop_null(plain)).to_numpy(zero_copy_only=False)


def whole_array(values: pa.ChunkedArray) -> pa.Array:
    """All chunks as one array."""
    whole = values.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def read_values(column: Column, values: pa.ChunkedArray) -> Values:
    """An Arrow column as texts or numbers, by the column's kind."""
    return to_texts(column, values) if column.kind == "text" else to_numbers(column, values)
