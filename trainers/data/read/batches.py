"""The files of a table in pieces that can be read apart, each in batches of rows, and how much memory the whole takes.

Invariant: all pieces together have all rows once; a piece's batches come in the file's order; a few batches of a piece
are in memory at once. A piece is a row group of Parquet or a whole text file, and can be sent to another process.

Covered: Parquet, CSV and JSON Lines, plain, gzip or zip, CSV in any encoding. Not covered: sources that are no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from cluster.errors import DataError
from cluster.spec.data import CsvSource, FileSource, JsonlSource, ParquetSource
from trainers.data.read.arrow_types import file_list_lengths, plain_schema, plain_table
from trainers.data.read.delimited import (
    BLOCK_BYTES,
    BlockReader,
    file_start,
    line_blocks,
    parse_options,
    row_blocks,
    settle_source,
)
from trainers.data.read.files import packing, text_file, unpacked, zip_member
from trainers.data.read.table_files import json_table

BATCH_ROWS = 65_536
BUFFER_BYTES = 1 << 20
WHOLE_FACTOR = 8  # bytes that the report in memory is taken to need for each byte of the table
GZIP_FACTOR = 6  # text packs about so well
DICTIONARY_BYTES_MAX = 3  # a column chunk with fewer bytes a value is stored as codes


@dataclass(frozen=True)
class Piece:
    """A part of a source that one worker reads."""

    path: Path
    source: FileSource
    file: int
    """Place of the file among the source's files."""
    names: tuple[str, ...]
    """Columns in the first file's order; empty for JSON Lines, where each block says its own."""
    row_group: int | None = None
    """Of Parquet; None: the whole file."""
    first_row: int = 0
    """Row of the file with which the piece begins."""
    rows: int | None = None
    """Where known without reading."""
    schema: pa.Schema | None = None
    """Of Parquet: the columns of plain types."""
    lengths: tuple[tuple[str, int], ...] = ()
    """Of lists of numbers of one length in all files, by column."""


def whole_bytes(paths: Sequence[Path], source: FileSource) -> int:
    """An estimate, on the high side, of the memory that the report of the whole table takes. Raises DataError."""
    if isinstance(source, ParquetSource):
        sizes = [
            sum(meta.row_group(index).total_byte_size for index in range(meta.num_row_groups))
            for meta in (_parquet(path).metadata for path in paths)
        ]
    else:
        sizes = [_text_bytes(path) for path in paths]
    return WHOLE_FACTOR * sum(sizes)


def _text_bytes(path: Path) -> int:
    packed = packing(path)
    if packed == "zip":
        return zip_member(path).file_size
    return path.stat().st_size * (GZIP_FACTOR if packed else 1)


def find_pieces(paths: Sequence[Path], source: FileSource) -> list[Piece]:
    """The pieces of all files, in order. Raises DataError for files that do not fit together."""
    pieces: list[Piece] = []
    names: tuple[str, ...] = ()
    if isinstance(source, CsvSource):
        source = settle_source(source, paths[0]).source
    lengths = _list_lengths(paths, source)
    for place, path in enumerate(paths):
        if isinstance(source, JsonlSource):
            pieces.append(Piece(text_file(path, "utf-8"), source, place, ()))
            continue
        meta = None if isinstance(source, CsvSource) else _parquet(path)
        schema = plain_schema(meta.schema_arrow, lengths) if meta else None
        found = schema.names if schema else file_start(path, source).names  # type: ignore[arg-type]
        names = names or tuple(found)
        _check_names(path, found, names)
        if meta is None:
            pieces.append(Piece(path, source, place, names))
            continue
        first = 0
        for group in range(meta.metadata.num_row_groups):
            rows = meta.metadata.row_group(group).num_rows
            known = tuple(lengths.items())
            pieces.append(Piece(path, source, place, names, group, first, rows, schema, known))
            first += rows
    return pieces


def _list_lengths(paths: Sequence[Path], source: FileSource) -> dict[str, int]:
    if not isinstance(source, ParquetSource):
        return {}
    with _parquet_errors(paths[0]):
        return file_list_lengths(paths)


def read_batches(paths: Sequence[Path], source: FileSource) -> Iterator[pa.Table]:
    """All rows of the files in their order. Raises DataError, also midway."""
    for piece in find_pieces(paths, source):
        yield from read_piece(piece)


def read_piece(piece: Piece) -> Iterator[pa.Table]:
    """The batches of a piece, with columns of plain types. Raises DataError, also midway."""
    if isinstance(piece.source, CsvSource):
        return _csv_batches(piece, piece.source)
    return _jsonl_batches(piece) if isinstance(piece.source, JsonlSource) else _parquet_batches(piece)


def _parquet_batches(piece: Piece) -> Iterator[pa.Table]:
    with _parquet_errors(piece.path):
        coded = _coded_columns(piece)
        file = pa_parquet.ParquetFile(
            piece.path, read_dictionary=coded, pre_buffer=False, buffer_size=BUFFER_BYTES,
            page_checksum_verification=True,
        )  # fmt: skip
        lengths = dict(piece.lengths)
        batches = file.iter_batches(BATCH_ROWS, row_groups=[piece.row_group], use_threads=False)
        for batch in batches:
            yield plain_table(pa.Table.from_batches([batch]), lengths).select(list(piece.names))


def _coded_columns(piece: Piece) -> list[str]:
    """Text columns that the file stores as codes: reading them so saves decoding every word."""
    file = pa_parquet.ParquetFile(piece.path)
    group, schema = file.metadata.row_group(piece.row_group), file.schema_arrow
    places = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    return [
        name
        for name in schema.names
        if pa.types.is_string(schema.field(name).type)
        and places[name].total_uncompressed_size < DICTIONARY_BYTES_MAX * max(places[name].num_values, 1)
    ]


def _csv_batches(piece: Piece, source: CsvSource) -> Iterator[pa.Table]:
    """The batches of one file with every column as text."""
    start = file_start(piece.path, source)
    options = parse_options(start.names, source, piece.names)
    reading = start.read_options(block_size=BLOCK_BYTES, use_threads=False)
    try:
        with _opened(piece.path) as stream:
            text = stream if _is_utf8(source.encoding) else pa.transcoding_input_stream(stream, source.encoding, "utf8")
            if not start.plain:
                text = pa.PythonFile(BlockReader(row_blocks(line_blocks(text), start, source)), mode="r")
            for batch in pa_csv.open_csv(text, read_options=reading, **options):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"Cannot read {piece.path}", found=" ".join(str(error).split())[:300],
            rule=f"each line is {source.encoding} text and has as many fields as the header",
            remedy="Mend that line, or give the delimiter and encoding that the file uses.",
        ) from None  # fmt: skip


def _jsonl_batches(piece: Piece) -> Iterator[pa.Table]:
    """Blocks of whole lines; each says its own columns and types."""
    rows = 0
    try:
        with _opened(piece.path) as stream:
            for block in line_blocks(stream):
                if not block.strip():
                    continue
                table = json_table(block, threads=False)
                rows += table.num_rows
                yield plain_table(table, {})
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"Cannot read {piece.path} as JSON Lines",
            found=" ".join(str(error).split())[:300] + f" (after row {rows})",
            rule="each line is one flat JSON object with values of the same types",
            remedy="Mend that line, or choose the source that fits.",
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file's bytes, unpacked, as an Arrow stream. Raises DataError and what the stream raises."""
    if packing(path) == "zip":
        with unpacked(path) as member:
            yield pa.PythonFile(member, mode="r")
        return
    with pa.input_stream(str(path), compression=packing(path)) as stream:
        yield stream


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig")


def _check_names(path: Path, found: Sequence[str], names: Sequence[str]) -> None:
    twice = sorted({name for name in found if list(found).count(name) > 1})
    if twice:
        raise DataError(
            f"Cannot read {path}", found=f"column '{twice[0]}' is there twice", remedy="Rename one of them."
        )
    if set(found) != set(names):
        differ = sorted(set(found) ^ set(names))
        raise DataError(
            f"Cannot join {path} to the other files", found="these columns are in one only: " + ", ".join(differ),
            rule="all files of a source have the same columns", remedy="Rename or remove these columns.",
        )  # fmt: skip


def _parquet(path: Path) -> pa_parquet.ParquetFile:
    with _parquet_errors(path):
        return pa_parquet.ParquetFile(path)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"Cannot read {path} as Parquet", found=" ".join(str(error).split())[:300],
            rule="the file must be whole Parquet", remedy="It was changed or its copy was cut short: copy it again.",
        ) from None  # fmt: skip
