"""The files of a table in batches of rows, and how much memory the whole would take.

Invariant: a batch has all columns under the names and types of the whole; a few batches are in memory at once.

Covered: Parquet, plain and gzip CSV in UTF-8. Not covered: JSON Lines, other encodings (they are read whole).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pa_parquet

from cluster.errors import DataError
from cluster.spec.data import CsvSource, ParquetSource
from trainers.data.files import GZIP_MAGIC, open_bytes
from trainers.data.table_files import csv_header

BATCH_ROWS = 65_536
BLOCK_BYTES = 8 << 20
HEADER_BYTES_MAX = 1 << 20
WHOLE_FACTOR = 8  # bytes that the report in memory is taken to need for each byte of the table
GZIP_FACTOR = 6  # text packs about so well


def whole_bytes(paths: list[Path], source: CsvSource | ParquetSource) -> int:
    """An estimate, on the high side, of the memory that the report of the whole table takes. Raises DataError."""
    if isinstance(source, CsvSource):
        sizes = [path.stat().st_size * (GZIP_FACTOR if _zipped(path) else 1) for path in paths]
    else:
        sizes = [
            sum(meta.row_group(index).total_byte_size for index in range(meta.num_row_groups))
            for meta in (_parquet(path).metadata for path in paths)
        ]
    return WHOLE_FACTOR * sum(sizes)


def read_batches(paths: list[Path], source: CsvSource | ParquetSource) -> Iterator[pa.Table]:
    """All rows of the files in their order. Raises DataError, also midway."""
    if isinstance(source, CsvSource):
        names: list[str] = []
        for path in paths:
            yield from _csv_batches(path, source, names)
        return
    schemas = [_parquet(path).schema_arrow for path in paths]
    for path, schema in zip(paths, schemas, strict=True):
        _check_names(path, schema.names, schemas[0].names)
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        dataset = pa_dataset.dataset(paths, schema=schema, format="parquet")
        for batch in dataset.to_batches(batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise DataError(
            f"Cannot read {paths[0]} as Parquet", found=" ".join(str(error).split())[:300],
            rule="the file must be whole Parquet", remedy="Copy it again.",
        ) from None  # fmt: skip


def _csv_batches(path: Path, source: CsvSource, names: list[str]) -> Iterator[pa.Table]:
    """The batches of one file with every column as text; `names` are the first file's columns."""
    found = csv_header(path, open_bytes(path, HEADER_BYTES_MAX).removeprefix(b"\xef\xbb\xbf"), source)
    names.extend(found if not names else ())
    _check_names(path, found, names)
    parse = pa_csv.ParseOptions(
        delimiter=source.delimiter, quote_char=source.quote or False, newlines_in_values=source.quote is not None
    )
    convert = pa_csv.ConvertOptions(
        column_types={name: pa.string() for name in found}, strings_can_be_null=False, include_columns=names
    )
    options = pa_csv.ReadOptions(column_names=found, skip_rows=1, block_size=BLOCK_BYTES, use_threads=False)
    try:
        with pa.input_stream(str(path), compression="gzip" if _zipped(path) else None) as stream:
            for batch in pa_csv.open_csv(stream, read_options=options, parse_options=parse, convert_options=convert):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"Cannot read {path}", found=" ".join(str(error).split())[:300],
            rule="each line is UTF-8 text and has as many fields as the header",
            remedy="Mend that line, or give the delimiter that the file uses.",
        ) from None  # fmt: skip


def _check_names(path: Path, found: list[str], names: list[str]) -> None:
    if set(found) != set(names):
        differ = sorted(set(found) ^ set(names))
        raise DataError(
            f"Cannot join {path} to the other files", found="these columns are in one only: " + ", ".join(differ),
            rule="all files of a source have the same columns", remedy="Rename or remove these columns.",
        )  # fmt: skip


def _parquet(path: Path) -> pa_parquet.ParquetFile:
    try:
        return pa_parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"Cannot read {path} as Parquet", found=" ".join(str(error).split())[:300],
            rule="the file must be whole Parquet", remedy="Copy it again.",
        ) from None  # fmt: skip


def _zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC
