"""Files, URLs and Python functions -> one raw `pyarrow.Table`.

Invariant: text formats come out as text, untouched, so that all reading rules lie in one place (tables.py and
cluster/bundle/transforms/columns.py); several files of a pattern are joined in the order of their names.

Covered: CSV, JSON Lines, Parquet, patterns, fsspec URLs, `module:function`. Not covered: tables past memory.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from cluster.errors import DataError
from cluster.spec.data import SPLITS, CsvSource, FileSource, JsonlSource, ParquetSource, PythonSource
from trainers.data.read.arrow_types import plain_table
from trainers.data.read.delimited import parse_options, row_blocks, settle_source, table_start
from trainers.data.read.fetch import called_by_url, find_files
from trainers.data.read.files import digest_files, open_bytes, text_file
from trainers.data.read.raw import FREE
from trainers.data.sample import FILE_ROWS_BITS


def load_tables(source: Any) -> tuple[pa.Table, np.ndarray | None, np.ndarray | None, str]:
    """All rows of a table source, their numbers and the split that files give (or None), and the digest. Raises
    DataError."""
    if isinstance(source, PythonSource):
        table = call_function(source.function)
        assert isinstance(table, pa.Table), "sources.py has taken pairs of arrays"
        return plain_table(table), None, None, _digest_table(table)
    paths, tests = find_files(source.path), find_files(source.test_path) if source.test_path else []
    if isinstance(source, CsvSource):
        source = settle_source(source, paths[0]).source
    tables = [(path, read_file(source, path)) for path in [*paths, *tests]]
    rows = [len(table) for _, table in tables]
    numbers = np.concatenate([np.arange(count, dtype=np.uint64) + np.uint64(file << FILE_ROWS_BITS)
                              for file, count in enumerate(rows)])  # fmt: skip
    main, fixed = _join(tables[: len(paths)]), None
    if tests:
        test = _join(tables[len(paths) :])
        main = _join([(Path(source.path), main), (Path(source.test_path), test)])
        fixed = np.full(len(main), FREE, dtype=np.int8)
        fixed[sum(rows[: len(paths)]) :] = SPLITS.index("test")
    return plain_source(source, main), numbers, fixed, digest_files([*paths, *tests])


def plain_source(source: FileSource, table: pa.Table) -> pa.Table:
    """All rows of a source with columns of plain types: lists of JSON Lines are not, whose blocks know no lengths."""
    return plain_table(table, {} if isinstance(source, JsonlSource) else None)


def read_file(source: CsvSource | JsonlSource | ParquetSource, path: Path) -> pa.Table:
    """One file as a table. Raises DataError."""
    with called_by_url([path]):
        if isinstance(source, CsvSource):
            return read_csv(path, source)
        read = read_jsonl if isinstance(source, JsonlSource) else read_parquet
        table = read(path)
        if table.num_rows == 0:
            raise DataError(f"Cannot read {path}", found="it has zero rows", remedy="Give a file that has rows.")
        return table


def read_csv(path: Path, source: CsvSource) -> pa.Table:
    """A delimited file with every column as text. Raises DataError."""
    source = settle_source(source, path).source
    data = decoded_text(text_file(path, source.encoding), source.encoding)
    start = table_start(path, data, source)
    rows = data if start.plain else b"".join(row_blocks([data], start, source))
    del data
    options = parse_options(start.names, source)

    def read(threads: bool) -> pa.Table:
        return pa_csv.read_csv(io.BytesIO(rows), read_options=start.read_options(use_threads=threads), **options)

    try:
        table = read(threads=True)
    except pa.ArrowInvalid:
        table = _explained(path, lambda: read(threads=False))
    if table.num_rows == 0:
        found = "it has a header and zero rows" if source.header else "it has zero rows"
        raise DataError(f"Cannot read {path}", found=found, remedy="Give a file with rows.")
    return table


def read_jsonl(path: Path) -> pa.Table:
    """JSON Lines. Raises DataError that names the line's trouble."""
    data = open_bytes(text_file(path, "utf-8"))
    try:
        return json_table(data, threads=True)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"Cannot read {path} as JSON Lines",
            found=" ".join(str(error).split()),
            rule="each line is one flat JSON object with values of the same types",
            remedy="Mend that line, or choose the source that fits.",
        ) from None


def json_table(data: bytes, *, threads: bool) -> pa.Table:
    """Lines of JSON as Arrow reads them, but whole numbers beyond 64 bits as texts: as floats they lose their digits.
    Raises pa.ArrowInvalid."""
    table = pa_json.read_json(io.BytesIO(data), pa_json.ReadOptions(use_threads=threads))
    for place, name in enumerate(table.column_names):
        column = table.column(name)
        if not pa.types.is_floating(column.type) or (pc.max(pc.abs(column)).as_py() or 0) < 2**63:
            continue
        values = [json.loads(line).get(name) for line in data.splitlines() if line.strip()]
        if all(value is None or (isinstance(value, int) and not isinstance(value, bool)) for value in values):
            digits = [None if value is None else str(value) for value in values]
            table = table.set_column(place, name, pa.chunked_array([pa.array(digits, pa.string())]))
    return table


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file, page checksums verified where it has them. Raises DataError."""
    try:
        return pa_parquet.read_table(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"Cannot read {path} as Parquet",
            found=" ".join(str(error).split()),
            rule="the file must be whole Parquet",
            remedy="It was changed or its copy was cut short: copy it again.",
        ) from None


def call_function(name: str) -> pa.Table | tuple[Any, Any]:
    """The table or pair of arrays that the user's function returns. Raises DataError for a wrong name or type."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"Cannot call {name}", found=str(error), rule="the module is looked for in the folder manta was started in",
            remedy="Mend data.source.function.",
        ) from None  # fmt: skip
    value = function()
    if isinstance(value, pa.Table):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return value
    if hasattr(value, "to_arrow_refs"):
        return _ray_rows(value)
    if type(value).__module__.startswith("pandas"):
        return pa.Table.from_pandas(value, preserve_index=False)
    raise DataError(
        f"Cannot use what {name} returned",
        found=f"a {type(value).__module__}.{type(value).__name__}",
        rule="it returns a pandas DataFrame, a pyarrow Table, a Ray Dataset or a pair of arrays (inputs, targets)",
        remedy="Convert it in the function.",
    )


def _ray_rows(dataset: Any) -> pa.Table:
    """All rows of a Ray Dataset, in the dataset's order: the digest of the source depends on it. Raises DataError."""
    dataset.context.execution_options.preserve_order = True
    batches = list(dataset.iter_batches(batch_format="pyarrow", batch_size=None))
    if not batches:
        raise DataError("Cannot use the Ray Dataset", found="it has zero rows", remedy="Give a source that has rows.")
    return pa.concat_tables(batches, promote_options="permissive")


def decoded_text(path: Path, encoding: str) -> bytes:
    """The file's text as UTF-8 bytes without a byte order mark. Raises DataError for bytes of another encoding."""
    data = open_bytes(path)
    try:
        text = data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise DataError(f"Cannot read {path}", found=f"there is no encoding {encoding!r}") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"Cannot read {path}",
            found=f"line {line} holds the byte 0x{data[error.start]:02x}, which is not {encoding}",
            rule="a file has one encoding",
            remedy="Set data.source.encoding (cp1252 and latin-1 are common), or convert the file to UTF-8.",
        ) from None
    return text.removeprefix("\ufeff").encode()


def _explained(path: Path, read: Callable[[], pa.Table]) -> pa.Table:
    """Read again in one thread, which makes the message name the row. Raises DataError."""
    try:
        return read()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"Cannot read {path}",
            found=" ".join(str(error).split())[:300],
            rule="each line has as many fields as the header",
            remedy="Mend that line, or set data.source.delimiter and data.source.quote to what the file uses.",
        ) from None


def _join(tables: list[tuple[Path, pa.Table]]) -> pa.Table:
    """One table of several with the same columns. Raises DataError that names the columns that differ."""
    with called_by_url([path for path, _ in tables]):
        return _joined(tables)


def _joined(tables: list[tuple[Path, pa.Table]]) -> pa.Table:
    first_path, first = tables[0]
    for path, table in tables[1:]:
        if set(table.column_names) != set(first.column_names):
            differ = sorted(set(table.column_names) ^ set(first.column_names))
            raise DataError(
                f"Cannot join {path} to {first_path}",
                found="these columns are in one of them only: " + ", ".join(differ),
                rule="all files of a source have the same columns",
                remedy="Rename or remove these columns.",
            )
    if len(tables) == 1:
        return first
    try:
        return pa.concat_tables([table for _, table in tables], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"Cannot join the files of {first_path}", found=str(error)) from None


def _digest_table(table: pa.Table) -> str:
    import hashlib

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
