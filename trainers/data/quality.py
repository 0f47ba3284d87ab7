"""The quality report: what is odd in a table, how bad it is, with evidence and the spec line that mends it.

Invariant: looks only, changes nothing; the same file gives the same report. Engine: in memory on pyarrow and NumPy,
every figure exact (drift and leakage on at most `ROWS_MAX` rows, drawn by content).

Covered: missing values and their suspicious words, white space, duplicates, constant and identifier columns, mixed
types, label variants, outliers (1.5 IQR), class balance, leakage of one column, overlap and drift between splits;
quality_columns.py: hidden missing values, dates, near-duplicate columns; label_noise.py: labels that look wrong.
Not covered: tables past memory (quality_stream.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cluster.bundle.transforms import Column, Texts
from trainers.data import label_noise, quality_columns
from trainers.data.columns import to_numbers, to_texts
from trainers.data.findings import SEVERITIES, Finding, Severity
from trainers.data.hashing import seeded, table_keys

SUSPICIOUS = ("", "?", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "-", "unknown")
OUTLIER_FENCE_IQR = 1.5  # Tukey 1977
LEAK_SCORE = 0.999  # a column that orders or groups the classes this well is the target under another name
RARE_SHARE = 0.05  # below it plain accuracy says little
PSI_SHIFTED = 0.2  # usual reading of the population stability index: above it the population has moved
ROWS_MAX = 200_000


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
    table = as_plain(table)
    test = test if test is None else as_plain(test)
    facts: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    values: dict[str, np.ndarray | Texts] = {}
    for name in table.column_names:
        texts = to_texts(Column(name=name, kind="text", missing=SUSPICIOUS), table.column(name))
        numbers = _numbers(texts)  # one number spelt in two ways ("1", "1.0") is one value
        values[name] = texts if numbers is None else numbers
        facts[name] = _facts(texts, numbers)
        findings += _column_findings(name, texts, numbers, facts[name], table.column(name), is_target=name == target)
    spaced = [name for name in table.column_names if _outer_spaces(table.column(name))]
    if spaced:
        text = f"{len(spaced)} columns have values with outer white space: {', '.join(spaced[:5])}"
        findings.append(Finding("white_space", "info", "", text, "none needed: it is always stripped"))
    keys = table_keys(values, table.num_rows)
    drawn = np.sort(np.argsort(seeded(keys, 0), kind="stable")[: label_noise.ROWS_MAX])
    features = {name: column for name, column in values.items() if name != target}
    findings += _duplicate_rows(keys)
    findings += quality_columns.near_duplicates(features, drawn)
    if target is not None:
        labels = to_texts(Column(name=target, kind="text", missing=SUSPICIOUS), table.column(target))
        findings += _target_findings(target, labels)
        findings += _leaks(target, labels, values)
        names = {finding.column for finding in findings if finding.rule == "identifier"}
        useful = {name: column for name, column in features.items() if name not in names}
        findings += label_noise.label_noise(target, labels, useful, drawn)
    if test is not None:
        findings += _split_findings(target, test, values)
    ordered = sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.rule))
    return QualityReport(table.num_rows, facts, tuple(ordered))


def _numbers(texts: Texts) -> np.ndarray | None:
    """The column as float64 where every word is a number, else None."""
    try:
        words = [float(word) for word in texts.words]
    except ValueError:
        return None
    return np.array([*words, np.nan])[texts.codes]


def _facts(texts: Texts, numbers: np.ndarray | None) -> dict[str, Any]:
    missing = int((texts.codes < 0).sum())
    facts: dict[str, Any] = {
        "kind": "number" if numbers is not None else "text",
        "missing": missing,
        "missing_share": missing / max(len(texts), 1),
        "different": len(texts.words),
    }
    if numbers is None or missing == len(texts):
        counts = np.bincount(texts.codes[texts.codes >= 0], minlength=len(texts.words))
        top = sorted(range(len(counts)), key=lambda code: (-counts[code], texts.words[code]))[:10]
        return {**facts, "most_frequent": {texts.words[code]: int(counts[code]) for code in top}}
    finite = numbers[np.isfinite(numbers)]
    quantiles = np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]) if len(finite) else np.zeros(5)
    counts, edges = np.histogram(finite, bins=20)
    names = ("min", "q25", "median", "q75", "max")
    spread = quantiles[3] - quantiles[1]
    low, high = quantiles[1] - OUTLIER_FENCE_IQR * spread, quantiles[3] + OUTLIER_FENCE_IQR * spread
    return {
        **facts,
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
        "mean": float(finite.mean()) if len(finite) else 0.0,
        "infinite": int(np.isinf(numbers).sum()),
        "outliers": int(((finite < low) | (finite > high)).sum()) if spread > 0 else 0,
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def _column_findings(
    name: str, texts: Texts, numbers: np.ndarray | None, facts: dict[str, Any], raw: pa.ChunkedArray, *, is_target: bool
) -> list[Finding]:
    found: list[Finding] = []

    def add(rule: str, severity: Severity, text: str, fix: str, **evidence: Any) -> None:
        found.append(Finding(rule, severity, name, text, fix, evidence))

    rows, missing = len(texts), facts["missing"]
    if missing:
        found.append(missing_finding(name, rows, missing, _suspicious_words(raw), is_target=is_target))
    if len(texts.words) == 1 and not missing:
        add("constant", "warning", f"all values are {texts.words[0]!r}", f"data.drop_columns: [{name}]")
    if numbers is None and len(texts.words) == rows - missing > 100:
        add("identifier", "warning", "each row has a value of its own", f"data.drop_columns: [{name}]",
            examples=list(texts.words[:3]))  # fmt: skip
    if numbers is None and not _is_prose(texts.words):
        numeric = [word for word in texts.words if _is_number(word)]
        if numeric and len(numeric) < len(texts.words):
            others = [word for word in texts.words if not _is_number(word)]
            add("mixed_types", "warning", f"{len(numeric)} of {len(texts.words)} different values are numbers",
                f"data.columns.{name}: category", numbers=numeric[:5], words=others[:5])  # fmt: skip
        variants = _variants(texts.words)
        if variants:
            mapped = ", ".join(f'"{group[1]}": "{group[0]}"' for group in variants[:5])
            add("label_variants", "error" if is_target else "warning", f"{len(variants)} differ in case or marks",
                f"data.clean.map_values: {{{name}: {{{mapped}}}}}", variants=variants[:5])  # fmt: skip
    if numbers is not None and not is_target:
        found += quality_columns.hidden_missing(name, numbers, in_text=pa.types.is_string(raw.type))
    if not is_target:
        found += quality_columns.date_like(name, texts.words, numbers)
    if facts.get("infinite"):
        add("infinite", "error", f"{facts['infinite']} values are infinite", "data.clean.infinite: missing")
    if facts.get("outliers", 0) > 0 and not is_target:
        add("outliers", "info", f"{facts['outliers']} values lie beyond {OUTLIER_FENCE_IQR} IQR of the quartiles",
            "data.clean.clip_iqr: 1.5", min=facts["min"], max=facts["max"])  # fmt: skip
    return found


def missing_finding(name: str, rows: int, missing: int, words: dict[str, int], *, is_target: bool) -> Finding:
    """How many values are missing; `words`: the suspicious ones among them."""
    severity: Severity = "error" if missing == rows else "warning" if missing > rows / 2 or is_target else "info"
    fix = f"data.source.missing: {sorted(words)}" if words else "data.clean.impute"
    return Finding("missing", severity, name, f"{missing} of {rows} values are missing", fix, {"words": words})


def as_plain(table: pa.Table) -> pa.Table:
    """Dates and times as text, the form in which they are judged."""
    for place, column in enumerate(table.columns):
        if pa.types.is_temporal(column.type):
            table = table.set_column(place, table.column_names[place], column.cast(pa.string()))
    return table


def _suspicious_words(raw: pa.ChunkedArray) -> dict[str, int]:
    if not pa.types.is_string(raw.type):
        return {}
    texts = to_texts(Column(name="", kind="text", missing=()), raw)
    counts = np.bincount(texts.codes[texts.codes >= 0], minlength=len(texts.words))
    return {word: int(counts[code]) for code, word in enumerate(texts.words) if word in SUSPICIOUS}


def _outer_spaces(raw: pa.ChunkedArray) -> int:
    import pyarrow.compute as pc

    if not pa.types.is_string(raw.type):
        return 0
    return int(pc.sum(pc.not_equal(raw, pc.utf8_trim_whitespace(raw))).as_py() or 0)


def _variants(words: tuple[str, ...]) -> list[list[str]]:
    """Groups of texts that are equal but for case, white space and outer marks."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(" ".join(word.casefold().split()).strip(".,;:!"), []).append(word)
    return [sorted(group) for key, group in sorted(groups.items()) if key and len(group) > 1]


def _duplicate_rows(keys: np.ndarray) -> list[Finding]:
    repeated = len(keys) - len(np.unique(keys))
    if not repeated:
        return []
    text = f"{repeated} of {len(keys)} rows repeat another row"
    return [Finding("duplicate_rows", "warning", "", text, "data.clean.drop_duplicates: true")]


def _target_findings(target: str, labels: Texts) -> list[Finding]:
    counts = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.words))
    if len(counts) < 2:
        return [Finding("target", "error", target, "the target has fewer than two values", "data.target")]
    smallest = int(counts.argmin())
    share = float(counts[smallest] / counts.sum())
    if len(counts) > 50 or share >= RARE_SHARE:
        return []
    text = f"class {labels.words[smallest]!r} has {counts[smallest]} of {counts.sum()} rows ({share:.1%})"
    return [Finding("class_balance", "warning", target, text, "data.balance: {method: class_weights}")]


def _leaks(target: str, labels: Texts, values: dict[str, np.ndarray | Texts]) -> list[Finding]:
    """Columns that alone predict the target of rows they were not fitted on."""
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    if len(labels.words) > 50 or np.bincount(labels.codes[labels.codes >= 0]).min() < 3:
        return []
    rows = np.flatnonzero(labels.codes >= 0)[:ROWS_MAX]
    found = []
    for name, column in values.items():
        if name == target:
            continue
        feature = column.codes[rows] if isinstance(column, Texts) else np.nan_to_num(column[rows], posinf=0, neginf=0)
        tree = DecisionTreeClassifier(max_depth=6, min_samples_leaf=2, random_state=0)
        goal = labels.codes[rows]
        score = cross_val_score(tree, feature[:, None], goal, cv=3, scoring="balanced_accuracy").mean()
        if score >= LEAK_SCORE:
            text = f"it alone predicts '{target}' (balanced accuracy {score:.3f} on rows not fitted)"
            found.append(
                Finding("leakage", "error", name, text, f"data.drop_columns: [{name}]", {"score": float(score)})
            )
    return found


def _split_findings(target: str | None, test: pa.Table, values: dict[str, np.ndarray | Texts]) -> list[Finding]:
    """Rows that both tables have, and number columns whose distribution has moved."""
    from scipy.stats import ks_2samp

    found: list[Finding] = []
    there: dict[str, np.ndarray | Texts] = {}
    features = {name: column for name, column in values.items() if name != target}
    for name, column in values.items():
        kind: Literal["number", "text"] = "text" if isinstance(column, Texts) else "number"
        rules = Column(name=name, kind=kind, missing=SUSPICIOUS)
        there[name] = (to_texts if kind == "text" else to_numbers)(rules, test.column(name))
        found += _other_labels(name, column, there[name])
    theirs = table_keys({name: there[name] for name in features}, test.num_rows)
    both = np.isin(theirs, table_keys(features, len(next(iter(values.values())))))
    if both.any():
        text = f"{int(both.sum())} of {test.num_rows} test rows have the features of a training row"
        found.append(Finding("overlap", "warning", "", text, "data.source: remove them from one file"))
    for name, column in values.items():
        other = there[name]
        if isinstance(column, Texts) or isinstance(other, Texts):
            continue
        a, b = column[np.isfinite(column)], other[np.isfinite(other)]
        if len(a) < 100 or len(b) < 100:
            continue
        psi = stability_index(a, b)
        if psi > PSI_SHIFTED:
            distance = float(ks_2samp(a, b).statistic)
            text = f"it differs between training and test: PSI {psi:.2f}, Kolmogorov-Smirnov {distance:.2f}"
            found.append(Finding("drift", "warning", name, text, "look at how the files were made",
                                 {"psi": psi, "ks": distance}))  # fmt: skip
    return found


def _other_labels(name: str, column: np.ndarray | Texts, other: np.ndarray | Texts) -> list[Finding]:
    """Texts of the test table that are one of the training table's but for case and marks (`>50K.`)."""
    if not isinstance(column, Texts) or not isinstance(other, Texts) or _is_prose(column.words):
        return []
    unknown = set(other.words) - set(column.words)
    pairs = [group for group in _variants((*column.words, *unknown)) if unknown & set(group)]
    if not pairs:
        return []
    mapped = {word: next((w for w in group if w in column.words), group[0]) for group in pairs for word in group}
    fix = {word: to for word, to in mapped.items() if word in unknown}
    text = f"{len(fix)} values of the test file are spelt otherwise in training"
    return [Finding("label_variants", "error", name, text, f"data.clean.map_values: {{{name}: {fix}}}", {"map": fix})]


def _is_prose(words: tuple[str, ...]) -> bool:
    return len(words) > 64 and sum(word.count(" ") + 1 for word in words) > 3 * len(words)


def stability_index(a: np.ndarray, b: np.ndarray, bins: int = 10) -> float:
    """Population stability index over the deciles of `a`; empty bins count as half a row."""
    edges = np.unique(np.quantile(a, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (a, b):
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts, 0.5) / len(values))
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
