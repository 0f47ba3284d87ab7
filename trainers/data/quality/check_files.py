"""Tables that come in batches -> the quality report: scan on an executor, merge in order, report.

Invariant: bounded memory, and one report whichever executor scans. Exact: rows, missing, infinite values, minimum,
maximum, mean, sentinels, white space, and the words, classes, label variants and mixed types of columns with at most
`WORDS_MAX` different words. Different values, repeated rows and overlap come from the k smallest 64-bit hashes: exact
below k, else within `DistinctSketch.relative_error` (three standard errors). All other findings are judged on
`SAMPLE_ROWS` rows drawn evenly over the table: a quantile's rank is off by at most `QUANTILE_RANK_ERROR`, except once
in a million (Dvoretzky, Kiefer, Wolfowitz; Massart 1990).

Covered: Parquet, CSV and JSON Lines of any size, a second file. Not covered: tables in memory (`report.check_table`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from cluster.errors import DataError
from cluster.spec.data import FileSource
from trainers.data.executors import THREADS, Executor
from trainers.data.quality.column_counts import ColumnCounts
from trainers.data.quality.report import QualityReport, report_of
from trainers.data.quality.table_summary import Scan, Summary
from trainers.data.read.batches import Piece, find_pieces, read_piece
from trainers.data.read.columns import plain_numbers
from trainers.data.sample import FILE_ROWS_BITS, place_limit

Item = tuple[Piece | pa.Table, int, Mapping[str, ColumnCounts]]
"""What a worker reads, the number of its first row, and hints."""


def check_batches(
    batches: Iterable[pa.Table], target: str | None = None, *, test: Iterable[pa.Table] | None = None
) -> QualityReport:
    """The report of a table that comes in batches, and of a second one beside it. Raises DataError."""
    scan = Scan(target, with_features=test is not None)
    whole = _scanned(batches, scan, THREADS)
    if test is None:
        return report_of(whole, target)
    return report_of(whole, target, test=_scanned(test, _beside(scan, whole), THREADS))


def check_files(
    paths: Sequence[Path], source: FileSource, target: str | None = None, *, test: Sequence[Path] = (),
    executor: Executor = THREADS,
) -> QualityReport:  # fmt: skip
    """The report of files, and of a second set of files beside it. Raises DataError."""
    pieces = find_pieces(paths, source)
    limit = place_limit([piece.rows for piece in pieces])
    scan = Scan(target, str(paths[0]), sample_below=limit, with_features=bool(test))
    whole = _scanned(pieces, scan, executor)
    if not test:
        return report_of(whole, target)
    others = find_pieces(test, source)
    limit = place_limit([piece.rows for piece in others])
    beside = replace(_beside(scan, whole), name=str(test[0]), sample_below=limit)
    return report_of(whole, target, test=_scanned(others, beside, executor))


def summarize(item: Item, scan: Scan) -> Summary:
    """The summary of an item: what a worker returns."""
    given, first, known = item
    summary = Summary()
    for batch in [given] if isinstance(given, pa.Table) else _plain_batches(given):
        if batch.num_rows:
            summary.add(batch, first, scan, known)
            first += batch.num_rows
    return summary


def _scanned(tables: Iterable[Piece | pa.Table], scan: Scan, executor: Executor) -> Summary:
    whole = Summary()
    for summary in executor.map(summarize, _items(tables, whole, local=executor.local), scan):
        whole.merge(summary)
    if whole.rows == 0:
        raise DataError(f"Cannot check {scan.name}", found="it has zero rows", remedy="Give a file that has rows.")
    return whole


def _items(tables: Iterable[Piece | pa.Table], whole: Summary, *, local: bool) -> Iterator[Item]:
    """The pieces or batches in order. Where workers share this process's memory, text files are cut into batches here,
    and hints come from `whole`, which changes only between two items."""
    first = 0
    for table in tables:
        if isinstance(table, pa.Table):
            yield table, first, whole.hints()
            first += table.num_rows
            continue
        first = (table.file << FILE_ROWS_BITS) + table.first_row
        if table.row_group is not None or not local:
            yield table, first, whole.hints()
            continue
        for batch in _plain_batches(table):
            yield batch, first, whole.hints()
            first += batch.num_rows


def _plain_batches(piece: Piece) -> Iterator[pa.Table]:
    return (plain_numbers(piece.source, batch) for batch in read_piece(piece))


def _beside(scan: Scan, whole: Summary) -> Scan:
    """What a second table is scanned for, beside the first one's summary."""
    whole.features.count()  # settles the hashes
    return replace(scan, known=whole.features.smallest)
