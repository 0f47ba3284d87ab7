"""The quality report: what is odd in a table, how bad it is, with evidence and the spec line that mends it.

    batches -> scan (table_summary.py) -> merge -> report_of: facts and findings

Invariant: looks only, changes nothing; the report depends neither on how the rows were divided nor on the executor.
What adds up is counted in all rows; what needs values together is judged on the summary's sample, which holds all rows
of a table in memory. A rule that counts can decide is not decided by a sample; a finding that a sample decided says
so, and an estimate carries its bound.

Covered: all findings: of counts in rules.py, of a column's values in column_findings.py, leakage in leaks.py, wrong
labels in label_noise.py, numbers that are names in named_numbers.py, two tables in drift.py. Not covered: reading files
(check_files.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.bundle.transforms import Column, Texts, Values
from trainers.data.hashing import seeded, table_keys
from trainers.data.quality import column_findings, label_noise, named_numbers, rules
from trainers.data.quality.column_counts import ColumnCounts, run_edges
from trainers.data.quality.drift import find_drift
from trainers.data.quality.findings import SEVERITIES, Finding
from trainers.data.quality.leaks import find_leaks
from trainers.data.quality.rules import OUTLIER_FENCE_IQR, SUSPICIOUS, word_counts
from trainers.data.quality.table_summary import Scan, Summary
from trainers.data.read.columns import to_numbers, to_texts
from trainers.data.sample import FILE_ROWS_BITS, QUANTILE_RANK_ERROR

HISTOGRAM_BINS = 20
HISTOGRAM_IQR = 3.0  # values farther from the quartiles go to the outer bins: a few would leave all others in one bar


@dataclass(frozen=True)
class QualityReport:
    """Facts a column, and findings, worst first."""

    rows: int
    columns: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns, "findings": [vars(finding) for finding in self.findings]}


@dataclass
class Findings:
    """What was found: by the counts of all rows, and on the sample."""

    counted: list[Finding | None]
    judged: list[Finding | None]

    def of_words(self, *, complete: bool) -> list[Finding | None]:
        """Where a finding goes that depends on a column's different words."""
        return self.counted if complete else self.judged


def check_table(
    table: pa.Table, target: str | None = None, *, test: pa.Table | None = None, name: str = "the table"
) -> QualityReport:
    """The report of a table in memory, and of a second one beside it. Raises DataError."""
    scan = Scan(target, name, exact=True)
    return report_of(_in_memory(table, scan), target, test=None if test is None else _in_memory(test, scan))


def _in_memory(table: pa.Table, scan: Scan) -> Summary:
    summary = Summary(exact=True)
    summary.add(table, 0, scan)
    return summary


def report_of(whole: Summary, target: str | None = None, *, test: Summary | None = None) -> QualityReport:
    """The report of all rows. Raises DataError."""
    values = {name: _values(counts, whole.sample.rows.column(name)) for name, counts in whole.columns.items()}
    facts: dict[str, dict[str, Any]] = {}
    found = Findings(rules.unusable_types(whole.gone), [])
    for name, counts in whole.columns.items():
        spread = _number_facts(values[name])
        if spread and counts.different.count() <= 2:  # of an indicator the rarer value is no outlier
            spread["outliers"] = 0
        facts[name] = _facts(counts, values[name], spread, whole)
        _judge_column(found, counts, values[name], spread, whole, is_target=name == target)
    keys = table_keys(values, whole.sample.rows.num_rows)
    found.counted += [_white_space(whole), _repeats(whole, keys)]
    _judge_together(found, values, keys, whole, target)
    if test is not None:
        _judge_beside(found, values, whole, test, target)
    findings = found.counted + [_of_sample(finding, whole) for finding in rules.grouped(found.judged) if finding]
    if target is not None and len(whole.columns) == 2:
        findings = rules.of_the_only_feature(findings)
    there = (finding for finding in findings if finding is not None)
    ordered = sorted(there, key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))
    return QualityReport(whole.rows, facts, tuple(ordered))


def _values(counts: ColumnCounts, raw: pa.ChunkedArray) -> Values:
    """A column of the sample as the kind that all rows have."""
    if counts.numeric and (pa.types.is_floating(raw.type) or pa.types.is_integer(raw.type)):
        return pc.fill_null(raw.cast(pa.float64()), np.nan).to_numpy() + 0.0  # no -0.0
    texts = to_texts(Column(name=counts.name, kind="text", missing=SUSPICIOUS), raw)
    return np.array([*map(float, texts.words), np.nan])[texts.codes] if counts.numeric else texts


def _facts(counts: ColumnCounts, values: Values, spread: dict[str, Any], whole: Summary) -> dict[str, Any]:
    """Exact counts, and in a sampled table its quantiles, counts scaled to all rows, and the bounds."""
    missing = counts.missing + whole.rows - counts.rows  # a column that some rows lack is missing there
    scale = whole.rows / max(whole.sample.rows.num_rows, 1)
    bounds = {"different": counts.different.relative_error}
    facts: dict[str, Any] = {
        "kind": "number" if counts.numeric else "text",
        "missing": missing,
        "missing_share": missing / max(whole.rows, 1),
        "missing_map": _missing_map(counts) if missing else [],
        "different": counts.different.count(),
    }
    if spread and counts.finite:
        exact = {"min": counts.low.value, "max": counts.high.value, "mean": math.fsum(counts.sums) / counts.finite}
        facts |= {"infinite": counts.infinite, **spread, **exact, "outliers": round(spread["outliers"] * scale)}
        bounds["quantile_rank"] = 0.0 if whole.whole else QUANTILE_RANK_ERROR
    elif spread:
        facts |= {"infinite": counts.infinite, **spread}
    else:
        words = counts.words if not counts.numeric else {}
        if words is None:
            assert isinstance(values, Texts)
            words = {word: round(count * scale) for word, count in word_counts(values).items()}
        top = sorted(words, key=lambda word: (-words[word], word))[:10]
        facts["most_frequent"] = {word: words[word] for word in top}
    return facts if whole.exact else {**facts, "bounds": bounds}


def _missing_map(counts: ColumnCounts) -> list[float]:
    """The share of missing values in each run of rows; one that ends within a run of a batch takes its share of it."""
    rows, holes = np.cumsum(np.concatenate([[[0, 0]], *counts.holes]), axis=0).T
    edges = run_edges(int(rows[-1]))
    shares = np.diff(np.interp(edges, rows, holes)) / np.diff(edges)
    return [float(np.round(share, 4)) for share in shares]


def _number_facts(values: Values) -> dict[str, Any]:
    """Quantiles, mean, values beyond Tukey's fences and histogram of the finite numbers; empty without a number."""
    if isinstance(values, Texts) or np.isnan(values).all():
        return {}
    finite = values[np.isfinite(values)]
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
        "outliers": int(((finite < low) | (finite > high)).sum()),
        "fences": [float(low), float(high)],
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def _judge_column(
    found: Findings, counts: ColumnCounts, values: Values, spread: dict[str, Any], whole: Summary, *, is_target: bool
) -> None:
    name, reading = counts.name, counts.reading
    missing = counts.missing + whole.rows - counts.rows
    there, different, text = whole.rows - missing, counts.different.count(), not counts.numeric
    example = next(iter(counts.words)) if counts.words else None
    found.counted += [
        rules.missing_finding(name, whole.rows, missing, counts.suspicious, is_target=is_target, is_text=text),
        rules.constant_finding(name, example, different, missing),
        rules.infinite_finding(name, counts.infinite if counts.numeric else 0),
    ]
    if not is_target:
        found.counted.append(column_findings.reading_finding(name, reading, counts.writing))
        if reading.kind in ("number", "words"):
            found.judged += column_findings.date_like(name, values)
    if reading.kind in ("date", "unit"):
        return  # each row may well have a value of its own
    likely = there if different >= there * (1 - counts.different.relative_error) else different
    if isinstance(values, Texts):
        _judge_words(found, counts, values, (there, likely), is_target=is_target)
    elif not is_target:
        found.judged.append(rules.outliers_finding(name, spread))
        if counts.finite and counts.whole:
            finite = values[np.isfinite(values)]
            ends = (counts.low.value, counts.high.value, float(counts.step))
            examples = [float(value) for value in finite[:3]]
            found.counted.append(rules.identifier_finding(name, there, likely, examples, ends=ends))
        if counts.finite:
            found.counted += column_findings.hidden_missing(name, counts.low, counts.high, in_text=counts.in_text)


def _judge_words(
    found: Findings, counts: ColumnCounts, values: Texts, there: tuple[int, int], *, is_target: bool
) -> None:
    """`there`: rows with a value, and different ones among them."""
    name, words = counts.name, _words(counts, values)
    if not rules.is_free_text(words, there[0] if counts.words is not None else int((values.codes >= 0).sum())):
        found.counted.append(rules.identifier_finding(name, *there, values.words[:3]))
    if not rules.is_prose(words):
        found.of_words(complete=counts.words is not None).extend(
            [rules.mixed_types(name, words), rules.label_variants(name, words, is_target=is_target)]
        )


def _words(counts: ColumnCounts, values: Texts) -> tuple[str, ...]:
    """All different words where they were counted, else those of the sample."""
    return values.words if counts.words is None else tuple(counts.words)


def _judge_together(
    found: Findings, values: Mapping[str, Values], keys: np.ndarray, whole: Summary, target: str | None
) -> None:
    """Columns that repeat each other, and what the others say of the target."""
    drawn_order = np.argsort(seeded(keys, 0), kind="stable")
    drawn = np.sort(drawn_order[: label_noise.ROWS_MAX])
    features = {name: column for name, column in values.items() if name != target}
    found.judged += column_findings.near_duplicates(features, drawn)
    if target is None:
        return
    labels = to_texts(Column(name=target, kind="text", missing=SUSPICIOUS), whole.sample.rows.column(target))
    counts = whole.columns[target]
    quantity = counts.numeric and counts.finite > 0 and not counts.whole  # as `data.task: auto` (targets.py)
    found.of_words(complete=counts.words is not None).append(
        rules.target_finding(target, word_counts(labels) if counts.words is None else counts.words, quantity=quantity)
    )
    found.judged += find_leaks(target, labels, values)
    names = {finding.column for finding in found.counted if finding and finding.rule == "identifier"}
    useful = {name: column for name, column in features.items() if name not in names}
    rows = drawn_order[: named_numbers.ROWS_MAX]
    goal = _goal(labels, values[target], quantity, rows)
    found.judged += named_numbers.named_numbers(goal, _whole_numbers(useful, whole, rows))
    if quantity or any(_is_free(whole.columns[name], column) for name, column in features.items()):
        return  # a forest of classes; it knows nothing of what a text says, and may be sure without it
    found.judged += label_noise.label_noise(target, labels, useful, drawn)


def _goal(labels: Texts, values: Values, quantity: bool, rows: np.ndarray) -> np.ndarray:
    """(R, 1) float64 of a quantity, or (R, classes) 0 and 1; NaN where the target is missing."""
    if not isinstance(values, Texts) and (quantity or len(labels.words) > rules.CLASSES_MAX):
        return np.where(np.isfinite(values[rows]), values[rows], np.nan)[:, None]
    if len(labels.words) > rules.CLASSES_MAX:
        return np.full((len(rows), 1), np.nan)
    one_hot = np.eye(len(labels.words) + 1, len(labels.words))
    one_hot[-1] = np.nan
    return one_hot[labels.codes[rows]]


def _whole_numbers(columns: Mapping[str, Values], whole: Summary, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the columns that are read as numbers and hold whole ones alone."""
    return {
        name: column[rows]
        for name, column in columns.items()
        if not isinstance(column, Texts) and whole.columns[name].whole and whole.columns[name].reading.kind == "number"
    }


def _is_free(counts: ColumnCounts, values: Values) -> bool:
    if not isinstance(values, Texts) or counts.reading.kind != "words":
        return False
    rows = counts.rows if counts.words is not None else len(values)
    return rules.is_free_text(_words(counts, values), rows)


def _judge_beside(
    found: Findings, values: Mapping[str, Values], whole: Summary, test: Summary, target: str | None
) -> None:
    """Rows that both tables have, labels spelt otherwise, and columns whose distribution has moved."""
    there = _read_like(test.sample.rows, values)
    features = {name: column for name, column in values.items() if name != target}
    found.counted.append(_overlap(features, there, whole, test))
    respelt = set()
    for name, column in values.items():
        other = there[name]
        if not isinstance(column, Texts) or not isinstance(other, Texts):
            continue
        counts, others = whole.columns[name], test.columns[name]
        words, theirs = _words(counts, column), _words(others, other)
        complete = counts.words is not None and others.words is not None
        finding = rules.other_labels(name, words, theirs)
        found.of_words(complete=complete).append(finding)
        if finding:
            respelt.add(name)  # other spellings are no drift
        if name == target:
            found.of_words(complete=complete).append(rules.unseen_classes(name, words, theirs))
    found.judged += find_drift({name: column for name, column in values.items() if name not in respelt}, there)


def _read_like(test: pa.Table, values: Mapping[str, Values]) -> dict[str, Values]:
    """The test table's columns, each as the kind that training has it."""
    there: dict[str, Values] = {}
    for name, column in values.items():
        kind: Literal["number", "text"] = "text" if isinstance(column, Texts) else "number"
        rule = Column(name=name, kind=kind, missing=SUSPICIOUS, infinite="missing")
        there[name] = (to_texts if kind == "text" else to_numbers)(rule, test.column(name))
    return there


def _overlap(
    features: Mapping[str, Values], there: Mapping[str, Values], whole: Summary, test: Summary
) -> Finding | None:
    if whole.whole and test.whole:
        theirs = table_keys({name: there[name] for name in features}, test.rows)
        return rules.overlap_finding(int(np.isin(theirs, table_keys(features, whole.rows)).sum()), test.rows)
    about, shared = "", test.shared
    if whole.features.relative_error:
        shared = round(shared / (float(whole.features.smallest[-1]) / 2.0**64))
        about = f" (estimated from {test.shared} rows)"
    return rules.overlap_finding(shared, test.rows, about=about)


def _white_space(whole: Summary) -> Finding | None:
    return rules.white_space({name: counts.spaced for name, counts in whole.columns.items() if counts.spaced})


def _repeats(whole: Summary, keys: np.ndarray) -> Finding | None:
    if whole.whole:
        return rules.duplicate_rows(len(keys) - len(np.unique(keys)), len(keys))
    repeated, error = whole.rows - whole.repeats.count(), whole.repeats.relative_error
    if repeated <= error * whole.rows:
        return None
    about = f" (within {error:.2%} of the rows)" if error else ""
    return rules.duplicate_rows(repeated, whole.rows, about=about)


def _of_sample(finding: Finding, whole: Summary) -> Finding:
    """The sample's finding, saying that it is one, its examples with the rows of the file."""
    if whole.whole:
        return finding
    evidence, numbers = finding.evidence, whole.sample.numbers
    if finding.rule == "label_noise":
        rows = [{**example, **_file_row(int(numbers[example["row"]]))} for example in evidence["examples"]]
        evidence = {**evidence, "examples": rows}
    text = f"{finding.text} (in a sample of {whole.sample.rows.num_rows:,} rows)"
    return replace(finding, text=text, evidence=evidence)


def _file_row(number: int) -> dict[str, int]:
    file, row = number >> FILE_ROWS_BITS, number & ((1 << FILE_ROWS_BITS) - 1)
    return {"file": file, "row": row} if file else {"row": row}
