"""The quality report of a table past the memory budget: one pass over its pieces, in bounded memory.

Invariant: the report does not depend on who read which piece. Exact: rows, missing, infinite and repeated values as in
facts.py, minimum, maximum, mean, sentinels, white space, and the words, classes, label variants and mixed types
of columns with at most `WORDS_MAX` different words. Different values, repeated rows and overlap come from the k
smallest 64-bit hashes: exact below k, else within `DistinctSketch.relative_error` (three standard errors). All other
findings are judged on `SAMPLE_ROWS` rows drawn evenly over the table: a quantile's rank is off by at most
`QUANTILE_RANK_ERROR`, except once in a million (Dvoretzky, Kiefer, Wolfowitz; Massart 1990).

Covered: Parquet, CSV and JSON Lines of any size, a second file; threads here, or Ray Data (stream/ray_data.py).
Not covered: sources that are no files.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.errors import DataError
from cluster.spec.data import FileSource
from trainers.data.quality.facts import ColumnFacts
from trainers.data.quality.merge import merged_report
from trainers.data.quality.part import FILE_ROWS_BITS, SAMPLE_ROWS, Ask, Part, place
from trainers.data.quality.report import QualityReport, as_plain
from trainers.data.read.arrow_types import usable_table
from trainers.data.read.batches import Piece, find_pieces, read_piece
from trainers.data.read.columns import plain_numbers

SAMPLE_SPARE = 1.2  # a threshold that keeps a fifth more rows than the sample needs falls short once in 10^200 tables
WORKERS_MAX = 4  # each holds a few batches

Task = Callable[[], Part]


def check_stream(
    batches: Iterable[pa.Table], target: str | None = None, *, test: Iterable[pa.Table] | None = None
) -> QualityReport:
    """The report of a table that comes in batches, and of a second one beside it. Raises DataError."""
    ask = Ask(target, with_features=test is not None)
    whole = _checked(merge_parts(partial(_batch_tasks, batches, 0, ask)), ask)
    if test is None:
        return merged_report(whole, target)
    known = _knowing(ask, whole)
    return merged_report(whole, target, test=_checked(merge_parts(partial(_batch_tasks, test, 0, known)), known))


def check_files(
    paths: Sequence[Path], source: FileSource, target: str | None = None, *, test: Sequence[Path] = (),
    run: Callable[[list[Piece], Ask], Part] | None = None,
) -> QualityReport:  # fmt: skip
    """The report of files, and of a second set of files beside it. `run` makes the part of pieces (default: threads).

    Raises DataError.
    """
    run = run or run_here
    pieces = find_pieces(paths, source)
    ask = _with_threshold(Ask(target, str(paths[0]), with_features=bool(test)), pieces)
    whole = _checked(run(pieces, ask), ask)
    if not test:
        return merged_report(whole, target)
    others = find_pieces(test, source)
    known = replace(_knowing(ask, whole), name=str(test[0]))
    part = _checked(run(others, _with_threshold(known, others)), known)
    return merged_report(whole, target, test=part)


def run_here(pieces: list[Piece], ask: Ask) -> Part:
    """Read the pieces in threads of this process."""
    return merge_parts(partial(_piece_tasks, pieces, ask))


def summarize(piece: Piece, ask: Ask, known: Mapping[str, ColumnFacts] | None = None) -> Part:
    """The part of one piece: what a worker elsewhere returns. `known`: facts of other pieces, which save work."""
    part, first = Part(), (piece.file << FILE_ROWS_BITS) + piece.first_row
    for batch in _plain_batches(piece):
        if batch.num_rows:
            look(part, batch, first, ask, known)
            first += batch.num_rows
    return part


def merge_parts(tasks: Callable[[Part], Iterable[Task]]) -> Part:
    """Run the tasks on all cores and merge their parts in order; a few are in flight.

    `tasks` is handed what is merged so far, which only this thread changes, and only between two tasks that it makes.
    """
    workers = max(1, min(WORKERS_MAX, len(os.sched_getaffinity(0))))
    whole = Part()
    with ThreadPoolExecutor(workers, thread_name_prefix="quality") as pool:
        waiting: deque[Future[Part]] = deque()
        try:
            for task in tasks(whole):
                waiting.append(pool.submit(task))
                if len(waiting) > workers:
                    whole.merge(waiting.popleft().result())
            while waiting:
                whole.merge(waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
    return whole


def _piece_tasks(pieces: Iterable[Piece], ask: Ask, whole: Part) -> Iterator[Task]:
    """A task a piece of Parquet; a text file is cut into batches by whoever reads it."""
    for piece in pieces:
        if piece.row_group is not None:
            yield partial(summarize, piece, ask, whole.hints())
        else:
            yield from _batch_tasks(_plain_batches(piece), piece.file << FILE_ROWS_BITS, ask, whole)


def _plain_batches(piece: Piece) -> Iterator[pa.Table]:
    return (plain_numbers(piece.source, batch) for batch in read_piece(piece))


def _batch_tasks(batches: Iterable[pa.Table], first: int, ask: Ask, whole: Part) -> Iterator[Task]:
    for batch in batches:
        if batch.num_rows:
            yield partial(_look_alone, batch, first, ask, whole.hints())
            first += batch.num_rows


def _look_alone(batch: pa.Table, first: int, ask: Ask, known: Mapping[str, ColumnFacts]) -> Part:
    part = Part()
    look(part, batch, first, ask, known)
    return part


def look(part: Part, batch: pa.Table, first: int, ask: Ask, known: Mapping[str, ColumnFacts] | None = None) -> None:
    """Take a batch into a part; `first` is the number of its first row. Raises DataError."""
    if ask.target is not None and ask.target not in batch.column_names:
        raise DataError(
            f"Cannot check {ask.name}", found=f"it has no column '{ask.target}'",
            rule="its columns are " + ", ".join(batch.column_names[:20]), remedy="Mend --target.",
        )  # fmt: skip
    batch, gone = usable_table(as_plain(batch))
    part.gone |= gone
    part.rows += batch.num_rows
    features, label = np.zeros(batch.num_rows, dtype=np.uint64), np.zeros(1, dtype=np.uint64)
    for name in batch.column_names:
        facts = part.columns.get(name)
        if facts is None:
            facts = part.columns[name] = ColumnFacts(name, (known or {}).get(name))
        hashes = facts.add(batch.column(name))
        if name == ask.target:
            label = hashes
        else:
            features += hashes  # wraps around, and a missing value adds nothing, be its column there or not
    if ask.known is None:
        part.repeats.add(features + label)
        if ask.with_features:
            part.features.add(features)
    else:
        part.shared += int(np.isin(features, ask.known).sum())
    numbers = np.arange(first, first + batch.num_rows, dtype=np.uint64)
    if ask.sample_below is not None:
        drawn = place(numbers) < np.uint64(ask.sample_below)
        batch, numbers = batch.filter(pa.array(drawn)), numbers[drawn]
    part.draw(_decoded(batch), numbers)


def _knowing(ask: Ask, whole: Part) -> Ask:
    """What a second table is looked at for, beside the first one's part."""
    whole.features.count()  # settles the hashes
    return replace(ask, known=whole.features.smallest)


def _with_threshold(ask: Ask, pieces: Sequence[Piece]) -> Ask:
    rows = [piece.rows for piece in pieces]
    total = sum(count for count in rows if count is not None)
    if None in rows or total <= 2 * SAMPLE_ROWS:
        return replace(ask, sample_below=None)
    return replace(ask, sample_below=int(2**64 * SAMPLE_SPARE * SAMPLE_ROWS / total))


def _checked(part: Part, ask: Ask) -> Part:
    if part.rows == 0:
        raise DataError(f"Cannot check {ask.name}", found="it has zero rows", remedy="Give a file that has rows.")
    return part


def _decoded(batch: pa.Table) -> pa.Table:
    """Coded columns as texts: parts with other codes are joined."""
    for at, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type):
            batch = batch.set_column(at, batch.column_names[at], column.cast(column.type.value_type))
    return batch
