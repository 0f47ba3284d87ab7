"""The quality report: what is odd in a table, how bad it is, with evidence and the spec line that mends it.

Invariant: looks only, changes nothing; the same file gives the same report. Engine: in memory on pyarrow and NumPy,
every figure exact (drift and leakage on at most `ROWS_MAX` rows, drawn by content).

Covered: all findings: those of counts in rules.py, those of a column's values in columns.py, wrong
labels in label_noise.py; here facts, leakage of one column, overlap and drift between files.
Not covered: tables past memory (stream.py, which judges its sample with this module).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column, Texts
from cluster.bundle.transforms.columns import number_text, plain_float
from trainers.data.hashing import seeded, table_keys
from trainers.data.quality import columns as quality_columns
from trainers.data.quality import label_noise
from trainers.data.quality import rules as quality_rules
from trainers.data.quality.facts import step_of
from trainers.data.quality.findings import SEVERITIES, Finding
from trainers.data.quality.leaks import find_leaks
from trainers.data.quality.rules import CLASSES_MAX, OUTLIER_FENCE_IQR, SUSPICIOUS, is_prose
from trainers.data.read.arrow_types import usable_table
from trainers.data.read.columns import numbers_there, to_numbers, to_texts
from trainers.data.read.reading import reading_of
from trainers.data.read.writing import Writing, writing_of, writing_of_numbers

PSI_SHIFTED = 0.2  # usual reading of the population stability index: above it the population has moved
DRIFT_ROWS_MIN = 100
HISTOGRAM_BINS = 20
HISTOGRAM_IQR = 3.0  # values farther from the quartiles go to the outer bins: a few would leave all others in one bar
MAP_CELLS = 40  # of the missing-value map: each is a run of rows of the table


@dataclass(frozen=True)
class QualityReport:
    """Facts a column, and findings, worst first."""

    rows: int
    columns: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns, "findings": [vars(finding) for finding in self.findings]}


def check_table(table: pa.Table, target: str | None = None, *, test: pa.Table | None = None) -> QualityReport:
    """Look at every column, the target and, where given, the test table."""
    table, gone = usable_table(as_plain(table))
    test = test if test is None else as_plain(test)
    facts: dict[str, dict[str, Any]] = {}
    findings: list[Finding | None] = quality_rules.unusable_types(gone)
    values: dict[str, np.ndarray | Texts] = {}
    free: list[str] = []
    for name in table.column_names:
        raw = table.column(name)
        values[name], words, writing = _read_column(name, raw)
        if name != target and reading_of(name, writing).kind == "words" and quality_rules.is_free_text(words, len(raw)):
            free.append(name)
        facts[name] = _facts(values[name], len(words))
        findings += _column_findings(name, values[name], words, facts[name], (raw, writing),
                                     is_target=name == target)  # fmt: skip
    spaced = {name: count for name in table.column_names if (count := _outer_spaces(table.column(name)))}
    keys = table_keys(values, table.num_rows)
    drawn = np.sort(np.argsort(seeded(keys, 0), kind="stable")[: label_noise.ROWS_MAX])
    features = {name: column for name, column in values.items() if name != target}
    findings += [quality_rules.white_space(spaced),
                 quality_rules.duplicate_rows(len(keys) - len(np.unique(keys)), len(keys))]  # fmt: skip
    findings += quality_columns.near_duplicates(features, drawn)
    if target is not None:
        labels = to_texts(Column(name=target, kind="text", missing=SUSPICIOUS), table.column(target))
        findings.append(quality_rules.target_finding(target, _counts(labels)))
        findings += find_leaks(target, labels, values)
        names = {finding.column for finding in findings if finding and finding.rule == "identifier"}
        useful = {name: column for name, column in features.items() if name not in names}
        if not free:  # a forest knows nothing of what a text says, and may be sure without it
            findings += label_noise.label_noise(target, labels, useful, drawn)
    if test is not None:
        findings += _test_findings(target, test, values)
    if is_alone(table.column_names, target):
        findings = quality_rules.of_the_only_feature(findings)
    return QualityReport(table.num_rows, facts, ordered(quality_rules.grouped(findings)))


def _read_column(name: str, raw: pa.ChunkedArray) -> tuple[np.ndarray | Texts, tuple[Any, ...], Writing]:
    """A column's values, its different values, and how they are written."""
    rules = Column(name=name, kind="text", missing=SUSPICIOUS)
    if pa.types.is_floating(raw.type) or pa.types.is_integer(raw.type):
        writing = writing_of_numbers(numbers_there(raw), integers=pa.types.is_integer(raw.type))
        if not writing.long:
            numbers = pc.fill_null(raw.cast(pa.float64()), np.nan).to_numpy() + 0.0  # no -0.0
            return numbers, tuple(np.unique(numbers[~np.isnan(numbers)])), writing
        texts = to_texts(rules, raw)
        return texts, texts.words, writing
    texts = to_texts(rules, raw)
    writing = writing_of(rules, texts.words)
    read = None if reading_of(name, writing).kind == "code" else _numbers(texts)
    return (texts if read is None else read), texts.words, writing  # "1" and "1.0" are one number


def is_alone(names: Sequence[str], target: str | None) -> bool:
    """Whether there is a single feature."""
    return target is not None and len(names) == 2


def ordered(findings: list[Finding | None]) -> tuple[Finding, ...]:
    """Without the empty ones, worst first."""
    there = [finding for finding in findings if finding is not None]
    return tuple(sorted(there, key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule)))


def _numbers(texts: Texts) -> np.ndarray | None:
    """The column as float64 where every word is a number, else None."""
    try:
        words = [plain_float(word) for word in texts.words]
    except ValueError:
        return None
    return np.array([*words, np.nan])[texts.codes]


def _counts(texts: Texts) -> dict[str, int]:
    counts = np.bincount(texts.codes[texts.codes >= 0], minlength=len(texts.words))
    return {word: int(count) for word, count in zip(texts.words, counts, strict=True) if count}


def _facts(values: np.ndarray | Texts, different: int) -> dict[str, Any]:
    texts = isinstance(values, Texts)
    holes = values.codes < 0 if isinstance(values, Texts) else np.isnan(values)
    missing = int(holes.sum())
    facts: dict[str, Any] = {
        "kind": "text" if texts else "number",
        "missing": missing,
        "missing_share": missing / max(len(values), 1),
        "missing_map": missing_map(holes) if missing else [],
        "different": different,
    }
    if isinstance(values, Texts) or missing == len(values):
        counts = _counts(values) if isinstance(values, Texts) else {}
        top = sorted(counts, key=lambda word: (-counts[word], word))[:10]
        return {**facts, "most_frequent": {word: counts[word] for word in top}}
    return {**facts, "infinite": int(np.isinf(values).sum()), **number_facts(values[np.isfinite(values)])}


def missing_map(holes: np.ndarray) -> list[float]:
    """The share of missing values in each of `MAP_CELLS` runs of rows, in the table's order."""
    return [float(np.round(part.mean(), 4)) for part in np.array_split(holes, min(MAP_CELLS, len(holes)))]


def number_facts(finite: np.ndarray) -> dict[str, Any]:
    """Quantiles, mean, values beyond Tukey's fences and histogram of finite numbers."""
    quantiles = np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]) if len(finite) else np.zeros(5)
    spread = quantiles[3] - quantiles[1]
    low, high = quantiles[1] - OUTLIER_FENCE_IQR * spread, quantiles[3] + OUTLIER_FENCE_IQR * spread
    reach = HISTOGRAM_IQR * spread if spread > 0 else np.inf
    near = np.clip(finite, max(quantiles[0], quantiles[1] - reach), min(quantiles[4], quantiles[3] + reach))
    counts, edges = np.histogram(near, bins=HISTOGRAM_BINS)
    names = ("min", "q25", "median", "q75", "max")
    return {
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
        "mean": float(finite.mean()) if len(finite) else 0.0,
        "outliers": int(((finite < low) | (finite > high)).sum()) if spread > 0 else 0,
        "fences": [float(low), float(high)],
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def _column_findings(
    name: str, values: np.ndarray | Texts, words: tuple[Any, ...], facts: dict[str, Any],
    raw: tuple[pa.ChunkedArray, Writing], *, is_target: bool,
) -> list[Finding | None]:  # fmt: skip
    """`words`: the different values, as texts or numbers. `raw`: the column, and how it is written."""
    rows, missing = len(values), facts["missing"]
    numbers = None if isinstance(values, Texts) else values
    example = words[0] if words and isinstance(words[0], str) else number_text(float(words[0])) if words else None
    found = [
        quality_rules.missing_finding(
            name, rows, missing, _suspicious_words(raw[0]), is_target=is_target, is_text=numbers is None
        ),
        quality_rules.constant_finding(name, example, len(words), missing),
        quality_rules.infinite_finding(name, facts.get("infinite", 0)),
    ]
    reading = reading_of(name, raw[1])
    if not is_target:
        found.append(quality_columns.reading_finding(name, reading, raw[1]))
        found += quality_columns.date_like(name, words, numbers) if reading.kind in ("number", "words") else []
    if reading.kind in ("date", "unit"):
        return found  # each row may well have a value of its own
    found.append(None if is_target else quality_rules.outliers_finding(name, facts))
    if numbers is None:
        if not quality_rules.is_free_text(words, rows - missing):
            found.append(quality_rules.identifier_finding(name, rows - missing, len(words), words[:3]))
        if not is_prose(words):
            found.append(quality_rules.mixed_types(name, words))
            found.append(quality_rules.label_variants(name, words, is_target=is_target))
    elif not is_target:
        finite = numbers[np.isfinite(numbers)]
        if len(finite) and np.array_equal(finite, np.floor(finite)):
            examples = [float(value) for value in finite[:3]]
            ends = (facts["min"], facts["max"], float(step_of(finite)))
            found.append(quality_rules.identifier_finding(name, rows - missing, len(words), examples, ends=ends))
        found += quality_columns.hidden_missing(name, numbers, in_text=is_text(raw[0].type))
    return found


def is_text(kind: pa.DataType) -> bool:
    """Whether reading rules apply: the source holds words."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def as_plain(table: pa.Table) -> pa.Table:
    """Dates and times as text, the form in which they are judged."""
    for place, column in enumerate(table.columns):
        if pa.types.is_temporal(column.type):
            table = table.set_column(place, table.column_names[place], column.cast(pa.string()))
    return table


def _suspicious_words(raw: pa.ChunkedArray) -> dict[str, int]:
    if not is_text(raw.type):
        return {}
    texts = to_texts(Column(name="", kind="text", missing=()), raw)
    return {word: count for word, count in _counts(texts).items() if word in SUSPICIOUS}


def _outer_spaces(raw: pa.ChunkedArray) -> int:
    if not is_text(raw.type) or pa.types.is_dictionary(raw.type):
        return 0
    return int(pc.sum(pc.not_equal(raw, pc.utf8_trim_whitespace(raw))).as_py() or 0)


def _test_findings(target: str | None, test: pa.Table, values: dict[str, np.ndarray | Texts]) -> list[Finding | None]:
    """Rows that both tables have, labels spelt otherwise, and columns whose distribution has moved."""
    there = read_like(test, values)
    features = {name: column for name, column in values.items() if name != target}
    theirs = table_keys({name: there[name] for name in features}, test.num_rows)
    both = np.isin(theirs, table_keys(features, len(next(iter(values.values())))))
    respelt = [
        quality_rules.other_labels(name, column.words, other.words)
        for name, column in values.items()
        if isinstance(column, Texts) and isinstance(other := there[name], Texts)
    ]
    unseen = None
    if target is not None and isinstance(labels := values[target], Texts) and isinstance(other := there[target], Texts):
        unseen = quality_rules.unseen_classes(target, labels.words, other.words)
    names = {finding.column for finding in respelt if finding}  # other spellings are no drift
    overlap = quality_rules.overlap_finding(int(both.sum()), test.num_rows)
    return [
        overlap,
        unseen,
        *respelt,
        *drift({name: column for name, column in values.items() if name not in names}, there),
    ]


def read_like(test: pa.Table, values: Mapping[str, np.ndarray | Texts]) -> dict[str, np.ndarray | Texts]:
    """The test table's columns, each as the kind that training has it."""
    there: dict[str, np.ndarray | Texts] = {}
    for name, column in values.items():
        kind: Literal["number", "text"] = "text" if isinstance(column, Texts) else "number"
        rules = Column(name=name, kind=kind, missing=SUSPICIOUS, infinite="missing")
        there[name] = (to_texts if kind == "text" else to_numbers)(rules, test.column(name))
    return there


def drift(values: Mapping[str, np.ndarray | Texts], there: Mapping[str, np.ndarray | Texts]) -> list[Finding | None]:
    """Number columns by PSI over deciles with the Kolmogorov-Smirnov distance, text columns by PSI over words."""
    from scipy.stats import ks_2samp

    found: list[Finding | None] = []
    for name, column in values.items():
        other = there[name]
        if isinstance(column, Texts) or isinstance(other, Texts):
            assert isinstance(column, Texts)
            assert isinstance(other, Texts)
            found.append(_words_moved(name, _counts(column), _counts(other)))
            continue
        a, b = column[np.isfinite(column)], other[np.isfinite(other)]
        if min(len(a), len(b)) < DRIFT_ROWS_MIN:
            continue
        psi = stability_index(a, b)
        if psi > PSI_SHIFTED:
            distance = float(ks_2samp(a, b).statistic)
            text = f"it differs between training and test: PSI {psi:.2f}, Kolmogorov-Smirnov {distance:.2f}"
            evidence = {"psi": psi, "ks": distance, "medians": [float(np.median(a)), float(np.median(b))]}
            found.append(Finding("drift", "warning", name, text, "look at how the files were made", evidence))
    return found


def _words_moved(name: str, here: dict[str, int], there: dict[str, int]) -> Finding | None:
    """PSI over the words, where they are few; the words that moved most are the evidence."""
    rows, others = sum(here.values()), sum(there.values())
    if min(rows, others) < DRIFT_ROWS_MIN or len(here) > CLASSES_MAX:
        return None
    words = sorted({*here, *there})
    a = np.maximum([here.get(word, 0) for word in words], 0.5) / rows
    b = np.maximum([there.get(word, 0) for word in words], 0.5) / others
    parts = (b - a) * np.log(b / a)
    psi = float(parts.sum())
    if psi <= PSI_SHIFTED:
        return None
    moved = {words[at]: [float(a[at]), float(b[at])] for at in np.argsort(-parts, kind="stable")[:3]}
    return Finding("drift", "warning", name, f"its words differ between training and test: PSI {psi:.2f}",
                   "look at how the files were made", {"psi": psi, "shares": moved})  # fmt: skip


def stability_index(a: np.ndarray, b: np.ndarray, bins: int = 10) -> float:
    """Population stability index over the deciles of `a`; empty bins count as half a row."""
    edges = np.unique(np.quantile(a, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (a, b):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts, 0.5) / len(values))
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
