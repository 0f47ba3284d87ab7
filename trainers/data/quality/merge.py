"""The report of a `Part`: the sample's findings, with exact counts and the sketches' estimates in their places.

Invariant: a rule that exact counts decide is never decided by the sample; a finding of the sample says so, and an
estimate carries its bound.

Covered: one part, and a second file's beside it. Not covered: making parts (stream.py, stream/ray_data.py).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainers.data.quality import columns as quality_columns
from trainers.data.quality import rules as quality_rules
from trainers.data.quality.facts import ColumnFacts
from trainers.data.quality.findings import Finding
from trainers.data.quality.part import FILE_ROWS_BITS, QUANTILE_RANK_ERROR, Part
from trainers.data.quality.report import MAP_CELLS, QualityReport, check_table, is_alone, ordered

COUNTED = {"missing", "infinite", "duplicate_rows", "white_space", "hidden_missing", "overlap", "constant",
           "identifier", "codes", "units"}  # fmt: skip
"""Rules that exact counts or sketches decide in every column."""
OF_WORDS = {"mixed_types", "label_variants", "target", "class_balance"}
"""Rules that the words decide, where all of them were counted."""
NUMBER_FACTS = ("min", "q25", "median", "q75", "max", "mean", "infinite", "outliers", "fences", "histogram")


def merged_report(whole: Part, target: str | None = None, *, test: Part | None = None) -> QualityReport:
    """The report of all rows. Raises DataError."""
    sampled = check_table(whole.sample, target, test=_like(whole, test))
    share = whole.rows / max(whole.sample.num_rows, 1)
    facts = {name: _facts(column, sampled.columns[name], whole.rows, share) for name, column in whole.columns.items()}
    found: list[Finding | None] = [
        _said(finding, whole) for finding in sampled.findings if not _decided(finding, whole, test)
    ]
    for name, column in whole.columns.items():
        found += _column_findings(name, column, whole, is_target=name == target)
    if is_alone(list(whole.columns), target):
        found = quality_rules.of_the_only_feature(found)
    found += [_white_space(whole), _repeats(whole), *quality_rules.unusable_types(whole.gone)]
    if target is not None and (counts := whole.columns[target].words) is not None:
        found.append(quality_rules.target_finding(target, counts))
    if test is not None:
        found += _beside(whole, test, target)
    return QualityReport(whole.rows, facts, ordered(found))


def _like(whole: Part, test: Part | None) -> pa.Table | None:
    return None if test is None else test.sample.select(whole.sample.column_names)


def _decided(finding: Finding, whole: Part, test: Part | None) -> bool:
    """Whether exact counts speak in place of the sample's finding."""
    if finding.rule in COUNTED or (finding.rule == "date_like" and "read_as" in finding.evidence):
        return True
    column = whole.columns.get(finding.column)
    if finding.rule not in OF_WORDS or column is None:
        return False
    if finding.evidence.keys() & {"map", "unseen"}:  # of two files
        return test is not None and column.words is not None and test.columns[finding.column].words is not None
    return column.words is not None


def _said(finding: Finding, whole: Part) -> Finding:
    """The sample's finding, saying that it is one, its examples with the rows of the file."""
    if whole.sample.num_rows == whole.rows:
        return finding
    evidence = finding.evidence
    if finding.rule == "label_noise":
        rows = [{**example, **_row(int(whole.numbers[example["row"]]))} for example in evidence["examples"]]
        evidence = {**evidence, "examples": rows}
    return replace(finding, text=f"{finding.text} (in a sample of {whole.sample.num_rows:,} rows)", evidence=evidence)


def _row(number: int) -> dict[str, int]:
    file, row = number >> FILE_ROWS_BITS, number & ((1 << FILE_ROWS_BITS) - 1)
    return {"file": file, "row": row} if file else {"row": row}


def _column_findings(name: str, column: ColumnFacts, whole: Part, *, is_target: bool) -> list[Finding | None]:
    missing = column.missing + whole.rows - column.rows  # a column that some rows lack is missing there
    there, different, words = whole.rows - missing, column.different.count(), column.words
    text, reading = not column.numeric, column.reading
    found = [
        quality_rules.missing_finding(name, whole.rows, missing, column.suspicious, is_target=is_target, is_text=text),
        quality_rules.constant_finding(name, _example(name, whole), different, missing),
        quality_rules.infinite_finding(name, column.infinite if column.numeric else 0),
    ]
    if not is_target:
        found.append(quality_columns.reading_finding(name, reading, column.writing))
    if reading.kind in ("date", "unit"):
        return found
    if text or (column.whole and column.finite and not is_target):
        error = column.different.relative_error
        likely = there if different >= there * (1 - error) else different
        ends = None if text else (column.low.value, column.high.value, float(column.step))
        shown = tuple(words) if words is not None else _sample_words(name, whole) if text else ()
        if not text or not quality_rules.is_free_text(shown, len(shown)):
            found.append(quality_rules.identifier_finding(name, there, likely, _examples(name, whole), ends=ends))
    if text and words is not None and not quality_rules.is_prose(tuple(words)):
        found.append(quality_rules.mixed_types(name, tuple(words)))
        found.append(quality_rules.label_variants(name, tuple(words), is_target=is_target))
    if column.numeric and column.finite and not is_target:
        found += quality_columns.hidden_ends(name, column.low, column.high, in_text=column.in_text)
    return found


def _facts(column: ColumnFacts, sampled: dict[str, Any], rows: int, share: float) -> dict[str, Any]:
    """The sample's facts with the exact ones in their places, counts scaled to all rows, and the bounds."""
    missing = column.missing + rows - column.rows
    facts = {**sampled, "kind": "number" if column.numeric else "text", "missing": missing}
    facts |= {"missing_share": missing / max(rows, 1), "different": column.different.count()}
    facts["missing_map"] = _missing_map(column) if missing else []
    bounds = {"different": column.different.relative_error}
    if column.numeric and column.finite and "median" in facts:
        mean = math.fsum(column.sums) / column.finite
        facts |= {"min": column.low.value, "max": column.high.value, "mean": mean, "infinite": column.infinite}
        facts["outliers"] = round(facts["outliers"] * share)
        bounds["quantile_rank"] = QUANTILE_RANK_ERROR if share > 1 else 0.0
    elif not column.numeric:
        facts = {key: value for key, value in facts.items() if key not in NUMBER_FACTS}
        counts = column.words if column.words is not None else facts.get("most_frequent", {})
        scale = 1.0 if column.words is not None else share
        top = sorted(counts, key=lambda word: (-counts[word], word))[:10]
        facts["most_frequent"] = {word: round(counts[word] * scale) for word in top}
    return {**facts, "bounds": bounds}


def _missing_map(column: ColumnFacts) -> list[float]:
    """As quality.missing_map; a cell that ends within a batch takes its share of the batch's holes."""
    rows, holes = np.cumsum([(0, 0), *column.holes], axis=0).T
    cells = np.linspace(0, rows[-1], min(MAP_CELLS, int(rows[-1])) + 1)
    shares = np.diff(np.interp(cells, rows, holes)) / np.diff(cells)
    return [float(np.round(share, 4)) for share in shares]


def _white_space(whole: Part) -> Finding | None:
    return quality_rules.white_space({name: column.spaced for name, column in whole.columns.items() if column.spaced})


def _repeats(whole: Part) -> Finding | None:
    repeated, error = whole.rows - whole.repeats.count(), whole.repeats.relative_error
    if repeated <= error * whole.rows:
        return None
    about = f" (within {error:.2%} of the rows)" if error else ""
    return quality_rules.duplicate_rows(repeated, whole.rows, about=about)


def _beside(whole: Part, test: Part, target: str | None) -> list[Finding | None]:
    """Overlap and other spellings of the second file, by the counts of all rows."""
    found: list[Finding | None] = []
    for name, column in whole.columns.items():
        other = test.columns[name]
        if column.words is not None and other.words is not None and not (column.numeric or other.numeric):
            found.append(quality_rules.other_labels(name, tuple(column.words), tuple(other.words)))
            if name == target:
                found.append(quality_rules.unseen_classes(name, tuple(column.words), tuple(other.words)))
    about, shared = "", test.shared
    if whole.features.relative_error:
        known = float(whole.features.smallest[-1]) / 2.0**64
        shared = round(shared / known)
        about = f" (estimated from {test.shared} rows)"
    found.append(quality_rules.overlap_finding(shared, test.rows, about=about))
    return found


def _example(name: str, whole: Part) -> Any:
    words = whole.columns[name].words
    return next(iter(words)) if words else None


def _sample_words(name: str, whole: Part) -> tuple[str, ...]:
    values = whole.sample.column(name)
    return tuple(pc.unique(values.cast(pa.string())).drop_null().to_pylist())


def _examples(name: str, whole: Part) -> list[Any]:
    return whole.sample.column(name).slice(0, 3).to_pylist()
