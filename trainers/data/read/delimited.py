"""A delimited text file -> its columns' names, and the bytes of its rows as Arrow's reader takes them.

Invariant: the whole file and the same file in blocks give the same rows, because both go through `table_start` and
`row_blocks`; a source whose dialect is plain (a header in the first line, rows to the end) is handed on as it is.

Covered: settling `auto`, lines before and after the table, comments, headers, quoted texts of `missing`.
Not covered: unpacking (files.py), joining files (table_files.py, batches.py).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv

from cluster.errors import DataError
from cluster.spec.data import CsvSource, DataSpec
from trainers.data.read.dialect import DELIMITERS, Dialect, find_dialect
from trainers.data.read.fetch import called_by_url, find_files
from trainers.data.read.files import open_bytes, packing, text_file, unpacked

HEAD_BYTES = 1 << 18  # about 2,000 lines of a common table
HEADER_BYTES_MAX = 1 << 20
TAIL_BYTES = 1 << 13
BLOCK_BYTES = 8 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KEYS = ("delimiter", "header", "skip_lines", "skip_last_lines", "comment", "decimal", "quoted_missing")
"""Of the source, that may be `auto`."""
LINE_END = re.compile(rb"\r\n|\n|\r")


def settle_source(source: CsvSource, path: Path) -> Dialect:
    """The source without `auto`, as the first bytes of its first file say. Raises DataError."""
    if all(getattr(source, key) != "auto" for key in KEYS):
        return Dialect(source)
    with called_by_url([path]):
        start = open_bytes(text_file(path, source.encoding), HEAD_BYTES)
        head = _decoded(start, source.encoding)
        if len(start) == HEAD_BYTES:
            head = head[: max(head.rfind("\n"), head.rfind("\r")) + 1] or head
        tail = _tail(path, source.encoding) if source.skip_last_lines == "auto" else ""
        return find_dialect(head, source, tail=tail, name=str(path))


def settle_spec(spec: DataSpec, path: Path | None = None) -> tuple[DataSpec, dict[str, str]]:
    """The spec with a source without `auto`, and the reason of each key that was. Raises DataError."""
    if not isinstance(spec.source, CsvSource):
        return spec, {}
    if path is None:
        path = find_files(spec.source.path)[0]
    found = settle_source(spec.source, path)
    return spec.model_copy(update={"source": found.source}), found.reasons


@dataclass(frozen=True)
class TableStart:
    """Where a table begins in its file."""

    names: list[str]
    offset: int
    """Bytes of UTF-8 text before the first row, without a byte order mark."""
    plain: bool
    """The file is one line of names and then rows, and nothing else."""

    def read_options(self, **options: Any) -> pa_csv.ReadOptions:
        return pa_csv.ReadOptions(column_names=self.names, skip_rows=int(self.plain), **options)


def table_start(path: Path, data: bytes, source: CsvSource) -> TableStart:
    """`data`: the file's first UTF-8 bytes without a byte order mark. Raises DataError for names that cannot be."""
    assert isinstance(source.skip_lines, int)
    at = 0
    for _ in range(source.skip_lines):
        at = _line_end(data, at)
    begin, line = at, b""
    while at < len(data):
        begin, at = at, _line_end(data, at)
        line = data[begin:at]
        if line.strip() and not (source.comment and line.startswith(source.comment.encode())):
            break
    text = line.decode(errors="replace").rstrip("\r\n")
    names = _header_names(path, text, source) if source.header else _first_row(data[begin:], source)
    if len(names) <= 1:
        raise _one_column(path, text, source)
    if source.names is not None and len(source.names) != len(names):
        raise DataError(
            f"Cannot read {path}",
            found=f"its first line has {len(names)} fields, and data.source.names has {len(source.names)}",
            rule="each column has one name",
            remedy="Mend data.source.names.",
        )
    if source.names is not None or not source.header:
        names = list(source.names or (f"column_{at + 1}" for at in range(len(names))))
    plain = bool(source.header) and begin == 0 and not (source.comment or source.skip_last_lines)
    return TableStart(names, at if source.header else begin, plain)


def file_start(path: Path, source: CsvSource) -> TableStart:
    """`table_start` of a file that is not in memory. Raises DataError."""
    start = open_bytes(text_file(path, source.encoding), HEADER_BYTES_MAX)
    return table_start(path, _decoded(start, source.encoding).encode(), source)


def parse_options(names: Sequence[str], source: CsvSource, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """Arrow's options for a settled source: every column as text, and null where a text of `missing` has no quotes."""
    import pyarrow as pa

    told = source.quoted_missing == "value"
    words = [word for word in source.missing if word] if told else []
    return {
        "parse_options": pa_csv.ParseOptions(
            delimiter=source.delimiter, quote_char=source.quote or False, newlines_in_values=source.quote is not None
        ),
        "convert_options": pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            strings_can_be_null=told,
            quoted_strings_can_be_null=False,
            null_values=["", *(f"{a}{word}{b}" for word in words for a in ("", " ") for b in ("", " "))],
            include_columns=list(columns) if columns is not None else None,
        ),
    }


def row_blocks(blocks: Iterable[bytes], start: TableStart, source: CsvSource) -> Iterator[bytes]:
    """The rows' bytes alone, of a file's UTF-8 text in blocks that end with a line."""
    assert isinstance(source.skip_last_lines, int)
    filtered = _Comments(source)
    left, held, first = start.offset, b"", True
    for block in blocks:
        if first:
            block, first = block.removeprefix(BYTE_ORDER_MARK), False
        gone = min(left, len(block))
        left -= gone
        rows = held + filtered.take(block[gone:])
        cut = _last_lines_at(rows, source.skip_last_lines)
        held = rows[cut:]
        if cut:
            yield rows[:cut]


def line_blocks(stream: Any) -> Iterator[bytes]:
    """A stream's bytes, about `BLOCK_BYTES` at a time, cut after a line."""
    rest = b""
    while chunk := stream.read(BLOCK_BYTES):
        head, mark, tail = chunk.rpartition(b"\n")
        if mark:
            yield rest + head + mark
            rest = tail
        else:
            rest += chunk
    if rest:
        yield rest


class BlockReader(io.RawIOBase):
    """Blocks as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, none at the end; all that is left for a negative one."""
        if size is None or size < 0:
            whole, self._rest = self._rest + b"".join(self._blocks), b""
            return whole
        while len(self._rest) < size and (block := next(self._blocks, None)) is not None:
            self._rest += block
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


class _Comments:
    """Takes lines of comment out of blocks; knows whether a block begins inside of quotes."""

    def __init__(self, source: CsvSource) -> None:
        mark = source.comment.encode() if source.comment else None
        self._lines = mark and re.compile(rb"(?:\A|(?<=[\r\n]))" + re.escape(mark) + rb"[^\r\n]*(?:\r\n|\r|\n|\Z)")
        self._quote = source.quote.encode() if source.quote else None
        self._inside = False

    def take(self, block: bytes) -> bytes:
        if not self._lines:
            return block
        kept, counted, at = [], 0, 0
        for match in self._lines.finditer(block):
            self._count(block[counted : match.start()])
            counted = match.start()
            if not self._inside:
                kept.append(block[at : match.start()])
                at = counted = match.end()
        self._count(block[counted:])
        return b"".join([*kept, block[at:]]) if kept else block

    def _count(self, part: bytes) -> None:
        if self._quote:
            self._inside ^= part.count(self._quote) % 2 == 1


def _last_lines_at(rows: bytes, count: int) -> int:
    """Where the last `count` lines that are not blank begin."""
    at = len(rows)
    for _ in range(count):
        text = len(rows[:at].rstrip())
        at = max(rows.rfind(b"\n", 0, text), rows.rfind(b"\r", 0, text)) + 1
    return at


def _line_end(data: bytes, at: int) -> int:
    match = LINE_END.search(data, at)
    return match.end() if match else len(data)


def _header_names(path: Path, line: str, source: CsvSource) -> list[str]:
    if source.quote and line.count(source.quote) % 2:
        raise DataError(
            f"Cannot read {path}",
            found=f"a name in its header goes on in the next line: {line[:60]!r}",
            rule="the header is one line",
            remedy="Rename that column, or set data.source.quote to null when the mark is no quote.",
        )
    return [name.strip() for name in _split([line], source)]


def _first_row(data: bytes, source: CsvSource) -> list[str]:
    return _split(io.StringIO(data.decode(errors="ignore"), newline=""), source)


def _split(lines: Iterable[str], source: CsvSource) -> list[str]:
    quoting: Any = csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE
    return next(csv.reader(lines, delimiter=source.delimiter, quotechar=source.quote or '"', quoting=quoting), [])


def _one_column(path: Path, line: str, source: CsvSource) -> DataError:
    others = {mark: line.count(mark) for mark in DELIMITERS if mark != source.delimiter and mark in line}
    mark = max(others, key=lambda item: others[item]) if others else None
    return DataError(
        f"Cannot read {path}",
        found=f"with the delimiter {source.delimiter!r} it has one column: {line[:60]!r}",
        rule="a table needs a feature beside its target",
        remedy=f"Set data.source.delimiter: {mark!r}." if mark else "Set data.source.delimiter.",
    )


def _decoded(start: bytes, encoding: str) -> str:
    """The text of a file's first bytes, whose last character may be cut."""
    try:
        return start.decode(encoding, errors="ignore").removeprefix("\ufeff")
    except LookupError:
        raise DataError("Cannot read the file", found=f"there is no encoding {encoding!r}") from None


def _tail(path: Path, encoding: str) -> str:
    """The last lines of a file: a packed one is unpacked whole, a block at a time."""
    with unpacked(path) as file:
        if packing(path) is None:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES) // 4 * 4)  # at a whole character of UTF-16 and UTF-32
            end = file.read()
        else:
            end = b""
            while block := file.read(BLOCK_BYTES):
                end = (end + block)[-TAIL_BYTES:]
    text = _decoded(end, "utf-16-le" if encoding.lower().replace("_", "-") in ("utf-16", "utf16") else encoding)
    return text.partition("\n")[2] if len(end) >= TAIL_BYTES else text
