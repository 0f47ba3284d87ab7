"""The quality report of a table past the memory budget: one pass over batches of rows, bounded memory.

Invariant: rows, missing and infinite values, minimum, maximum and mean are exact. Different values and repeated rows
come from the k smallest of their 64-bit hashes: exact below k, else within `DistinctSketch.relative_error` (three
standard errors). Everything else is judged on `SAMPLE_ROWS` rows drawn evenly over the whole table: a quantile's rank
is off by at most `QUANTILE_RANK_ERROR`, except once in a million (Dvoretzky, Kiefer, Wolfowitz; Massart 1990).

Covered: Parquet and plain or gzip CSV of any size; memory is a batch, the sample and the sketches. Not covered: a test
table, JSON Lines; in a column of words, numbers that are spelt in two ways ("1", "1.0") count as equal rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column
from cluster.errors import DataError
from trainers.data.columns import to_texts
from trainers.data.findings import SEVERITIES, Finding
from trainers.data.hashing import MISSING, MIX_1, mix, seeded, text_key
from trainers.data.quality import SUSPICIOUS, QualityReport, as_plain, check_table, missing_finding

SAMPLE_ROWS = 32_768
QUANTILE_RANK_ERROR = math.sqrt(math.log(2 / 1e-6) / (2 * SAMPLE_ROWS))  # 0.0149
COLUMN_HASHES = 4_096
ROW_HASHES = 1 << 21  # 16 MiB
EXACT_RULES = ("missing", "infinite", "duplicate_rows", "constant", "identifier", "target")


class DistinctSketch:
    """How many different hashes were seen, from the `size` smallest ones (Bar-Yossef et al. 2002)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.smallest = np.zeros(0, dtype=np.uint64)
        self.full = False

    @property
    def relative_error(self) -> float:
        """Three standard errors; 0 while the count is exact."""
        return 3 / math.sqrt(self.size - 2) if self.full else 0.0

    def add(self, hashes: np.ndarray) -> None:
        if self.full:
            hashes = hashes[hashes < self.smallest[-1]]
        merged = np.union1d(self.smallest, hashes)
        self.full = self.full or len(merged) > self.size
        self.smallest = merged[: self.size]

    def count(self) -> int:
        if not self.full:
            return len(self.smallest)
        return round((self.size - 1) * 2.0**64 / float(self.smallest[-1]))


class _ColumnFacts:
    """What is known of one column so far."""

    def __init__(self) -> None:
        self.missing = self.infinite = self.finite = 0
        self.low, self.high, self.total = math.inf, -math.inf, 0.0
        self.numeric = True
        self.different = DistinctSketch(COLUMN_HASHES)

    def add(self, values: pa.ChunkedArray) -> np.ndarray:
        """Take in a batch; its hashes, by which equal rows are found."""
        if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
            numbers = pc.fill_null(values.cast(pa.float64()), math.nan).to_numpy()
            there = ~np.isnan(numbers)
            hashes = np.where(there, mix((numbers + 0.0).view(np.uint64)), MISSING)
            self.different.add(hashes[there])
            self._add_numbers(numbers[there], int((~there).sum()))
            return hashes
        texts = to_texts(Column(name="", kind="text", missing=SUSPICIOUS), values)
        self.different.add(np.array([text_key(word.encode()) for word in texts.words], dtype=np.uint64))
        parsed = [_number(word) for word in texts.words]
        self.numeric = self.numeric and None not in parsed
        floats = np.array([math.nan if number is None else number for number in parsed] + [math.nan])
        numbers = floats[texts.codes]
        self._add_numbers(numbers[~np.isnan(numbers)], int((texts.codes < 0).sum()))
        words = [text_key(word.encode()) if number is None else 0 for word, number in zip(texts.words, parsed,
                 strict=True)]  # fmt: skip
        by_text = np.array([*words, int(MISSING)], dtype=np.uint64)
        return np.where(np.isnan(floats), by_text, mix((floats + 0.0).view(np.uint64)))[texts.codes]

    def _add_numbers(self, numbers: np.ndarray, missing: int) -> None:
        finite = numbers[np.isfinite(numbers)]
        self.missing += missing
        self.infinite += len(numbers) - len(finite)
        self.finite += len(finite)
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            self.total += float(finite.sum())

    def merged(self, sampled: dict[str, Any], rows: int, share: float) -> dict[str, Any]:
        """The sample's facts with the exact ones in their places, counts scaled to all rows, and the bounds."""
        facts = {**sampled, "kind": "number" if self.numeric else "text", "missing": self.missing}
        facts |= {"missing_share": self.missing / max(rows, 1), "different": self.different.count()}
        bounds = {"different": self.different.relative_error}
        if "median" in facts and self.numeric and self.finite:
            facts |= {"min": self.low, "max": self.high, "mean": self.total / self.finite, "infinite": self.infinite}
            facts["outliers"] = round(facts["outliers"] * share)
            bounds["quantile_rank"] = QUANTILE_RANK_ERROR if share > 1 else 0.0
        return {**facts, "bounds": bounds}


def check_stream(batches: Iterable[pa.Table], target: str | None = None) -> QualityReport:
    """The report of a table that comes in batches of the same columns."""
    columns: dict[str, _ColumnFacts] = {}
    repeats, rows = DistinctSketch(ROW_HASHES), 0
    sample, places = pa.table({}), np.zeros(0, dtype=np.uint64)
    for batch in batches:
        if batch.num_rows == 0:
            continue
        batch = as_plain(batch)
        keys = np.zeros(batch.num_rows, dtype=np.uint64)
        for name in batch.column_names:
            with np.errstate(over="ignore"):
                keys = mix(keys * MIX_1 + columns.setdefault(name, _ColumnFacts()).add(batch.column(name)))
        repeats.add(keys)
        fresh = seeded(np.arange(rows, rows + batch.num_rows, dtype=np.uint64), 1)
        sample, places = _draw(sample, places, batch, fresh)
        rows += batch.num_rows
    if rows == 0:
        raise DataError("Cannot check the table", found="it has zero rows", remedy="Give a file that has rows.")
    sampled = check_table(sample, target)
    share = rows / max(sample.num_rows, 1)
    facts = {name: column.merged(sampled.columns[name], rows, share) for name, column in columns.items()}
    found = _findings(sampled, columns, rows, target)
    repeated = rows - repeats.count()
    if repeated > repeats.relative_error * rows:
        about = f" (within {repeats.relative_error:.2%} of the rows)" if repeats.full else ""
        found.append(Finding("duplicate_rows", "warning", "", f"{repeated} of {rows} rows repeat another row{about}",
                             "data.clean.drop_duplicates: true"))  # fmt: skip
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))
    return QualityReport(rows, facts, tuple(found))


def _draw(sample: pa.Table, places: np.ndarray, batch: pa.Table, fresh: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """The `SAMPLE_ROWS` rows with the smallest places of the old sample and the batch, in the table's order."""
    if len(places) == SAMPLE_ROWS:
        keep = fresh < places.max()
        batch, fresh = batch.filter(pa.array(keep)), fresh[keep]
    joined = pa.concat_tables([sample, batch]) if sample.num_columns else batch
    places = np.concatenate([places, fresh])
    if len(places) <= SAMPLE_ROWS:
        return joined, places
    kept = np.sort(np.argpartition(places, SAMPLE_ROWS)[:SAMPLE_ROWS])
    return joined.take(pa.array(kept)).combine_chunks(), places[kept]


def _findings(sampled: QualityReport, columns: dict[str, _ColumnFacts], rows: int, target: str | None) -> list[Finding]:
    """The sample's findings where the sketches do not speak against them, and those of the exact counts."""
    found: list[Finding] = []
    suffix = f" (in a sample of {sampled.rows:,} rows)" if sampled.rows < rows else ""
    for finding in sampled.findings:
        column = columns.get(finding.column)
        true = finding.rule not in EXACT_RULES
        if column is not None:
            different, there = column.different, rows - column.missing
            true = true or (finding.rule in ("constant", "target") and different.count() < 2)
            true = true or (
                finding.rule == "identifier" and different.count() >= there * (1 - different.relative_error)
            )
        if true:
            found.append(replace(finding, text=finding.text + suffix))
    words = {item.column: item.evidence["words"] for item in sampled.findings if item.rule == "missing"}
    for name, column in columns.items():
        if column.missing:
            found.append(missing_finding(name, rows, column.missing, words.get(name, {}), is_target=name == target))
        if column.infinite and column.numeric:
            found.append(Finding("infinite", "error", name, f"{column.infinite} values are infinite",
                                 "data.clean.infinite: missing"))  # fmt: skip
    return found


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
