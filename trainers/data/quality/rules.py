"""The findings of the quality report as pure functions of counts and words.

Invariant: a finding follows from its arguments alone; None where there is nothing to find. report.py calls these with
counts of all rows, or with those of a sample.

Covered: missing values, constants, identifiers, mixed types, label variants, infinity, outliers, white space, repeated
rows, the target's classes, overlap. Not covered: what needs the values (column_findings.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.bundle.transforms import Texts
from cluster.bundle.transforms.columns import plain_float
from cluster.spec.data import CsvSource
from cluster.spec.remedy import drop_line, kind_line, map_line
from trainers.data.quality.findings import Finding, Severity
from trainers.data.read.infer import IDENTIFIER_WORDS_MEAN, NEARLY_UNIQUE
from trainers.data.read.missing_words import keep_line, may_be_values, said_missing

SUSPICIOUS = ("", "?", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "-", "unknown")
READ_AS_MISSING = tuple(word for word in CsvSource.model_fields["missing"].default if word)
OUTLIER_FENCE_IQR = 1.5  # Tukey 1977
RARE_SHARE = 0.05  # below it plain accuracy says little
CLASSES_MAX = 50  # a target with more different values is a quantity
IDENTIFIER_SHARE = 0.99  # of different values among those that are there; a repeated row repeats its identifier
IDENTIFIER_VALUES_MIN = 100
RUNNING_GAPS = 2.0  # a running number uses at least every other number of its range
EXAMPLES = 5


def missing_finding(
    name: str, rows: int, missing: int, words: Mapping[str, int], *, is_target: bool, is_text: bool = False
) -> Finding | None:
    """How many values are missing; `words`: the suspicious ones among them. `is_text`: the others are no numbers."""
    if not missing:
        return None
    read = {word: count for word, count in words.items() if word in READ_AS_MISSING}
    kept = may_be_values(read, rows, is_target=is_target) if is_text else {}
    severity: Severity = "error" if missing == rows else "warning" if missing > rows / 2 or is_target else "info"
    if words:
        fix = f"data.source.missing: {sorted(words)}"
    elif is_target:
        fix = "none needed: rows without a target are left out"
    else:
        fix = drop_line(name) if severity != "info" else "none needed: data.clean.impute says how they are filled"
    text = f"{missing} of {rows} values are missing"
    if kept:
        text += f": {said_missing(kept)}, and may be {'classes' if is_target else 'values'}"
        fix = f"{keep_line(name, kept)} keeps them" + (f"; {fix} says that they are missing" if words else "")
    return Finding("missing", severity, name, text, fix, {"words": dict(words)})


def constant_finding(name: str, example: Any, different: int, missing: int) -> Finding | None:
    """One value in all rows."""
    if different != 1 or missing:
        return None
    return Finding("constant", "warning", name, f"all values are {example!r}", drop_line(name),
                   {"examples": [example]})  # fmt: skip


def identifier_finding(
    name: str, there: int, different: int, examples: Sequence[Any], *, ends: tuple[float, float, float] | None = None
) -> Finding | None:
    """Nearly every row has a value of its own, which is no free text.

    `ends`: minimum, maximum and step of whole numbers, which must be running.
    """
    if different <= IDENTIFIER_VALUES_MIN or different < IDENTIFIER_SHARE * there:
        return None
    step = max(ends[2], 1.0) if ends is not None else 1.0
    if ends is not None and (ends[1] - ends[0]) / step + 1 > RUNNING_GAPS * there:
        return None
    nearly = "each row has" if different >= there else f"nearly each row ({different} of {there}) has"
    running = "" if ends is None else f"a running number{f' in steps of {step:g}' if step > 1 else ''}: "
    return Finding("identifier", "warning", name, f"{running}{nearly} a value of its own", drop_line(name),
                   {"examples": list(examples), "number": ends is not None})  # fmt: skip


def of_the_only_feature(findings: Sequence[Finding | None]) -> list[Finding | None]:
    """The same findings where there is one feature, which nobody can leave out."""
    return [_kept(finding) if finding and finding.rule == "identifier" else finding for finding in findings]


def _kept(finding: Finding) -> Finding:
    fix = "give the file more columns" if finding.evidence["number"] else kind_line(finding.column, "text")
    return replace(finding, text=f"{finding.text}, and there is no other feature", fix=fix)


def is_free_text(words: Sequence[str], there: int) -> bool:
    """Sentences, or texts of a few words each that hardly repeat: read for what they say, not for which they are.

    `there`: rows that have one.
    """
    if is_prose(words):
        return True
    many = len(words) > IDENTIFIER_VALUES_MIN and len(words) >= NEARLY_UNIQUE * there
    return many and sum(word.count(" ") + 1 for word in words) > IDENTIFIER_WORDS_MEAN * len(words)


def grouped(findings: Sequence[Finding | None]) -> list[Finding | None]:
    """Findings of outliers with the same remedy as one."""
    outliers = [finding for finding in findings if finding and finding.rule == "outliers"]
    remedies = dict.fromkeys(finding.fix for finding in outliers)
    together = [_joined([finding for finding in outliers if finding.fix == fix]) for fix in remedies]
    return [*(finding for finding in findings if not (finding and finding.rule == "outliers")), *together]


def _joined(outliers: Sequence[Finding]) -> Finding:
    if len(outliers) < 2:
        return outliers[0]
    ranked = sorted(outliers, key=lambda finding: -finding.evidence["count"])
    shown = ", ".join(f"{finding.column} ({finding.evidence['count']:,})" for finding in ranked[:EXAMPLES])
    more = f" and {len(ranked) - EXAMPLES} more" if len(ranked) > EXAMPLES else ""
    equal = outliers[0].evidence["fences"][0] == outliers[0].evidence["fences"][1]
    where = "that differ from both quartiles, which are equal" if equal else (
        f"beyond {OUTLIER_FENCE_IQR} IQR of the quartiles"
    )  # fmt: skip
    text = f"{len(ranked)} columns have values {where}: {shown}{more}"
    return Finding("outliers", "info", "", text, outliers[0].fix,
                   {"columns": {finding.column: finding.evidence for finding in ranked}})  # fmt: skip


def mixed_types(name: str, words: Sequence[str]) -> Finding | None:
    """Numbers beside words among the different values of a text column that is no prose."""
    numeric = [word for word in words if is_number(word)]
    if not numeric or len(numeric) == len(words):
        return None
    others = [word for word in words if not is_number(word)]
    return Finding("mixed_types", "warning", name, f"{len(numeric)} of {len(words)} different values are numbers",
                   kind_line(name, "category"),
                   {"numbers": sorted(numeric)[:EXAMPLES], "words": sorted(others)[:EXAMPLES]})  # fmt: skip


def label_variants(name: str, words: Sequence[str], *, is_target: bool) -> Finding | None:
    """Texts that are equal but for case, white space and outer marks."""
    groups = variants(words)
    if not groups:
        return None
    mapped = {word: group[0] for group in groups[:EXAMPLES] for word in group[1:]}
    return Finding("label_variants", "error" if is_target else "warning", name,
                   f"{len(groups)} differ in case or marks", map_line(name, mapped),
                   {"variants": groups[:EXAMPLES]})  # fmt: skip


def infinite_finding(name: str, count: int) -> Finding | None:
    """Infinite values."""
    if not count:
        return None
    return Finding("infinite", "error", name, f"{count} values are infinite", "data.clean.infinite: missing",
                   {"count": count})  # fmt: skip


def outliers_finding(name: str, facts: Mapping[str, Any]) -> Finding | None:
    """Values beyond Tukey's fences, from a column's facts."""
    count = facts.get("outliers", 0)
    if not count:
        return None
    evidence = {"count": count, "min": facts["min"], "max": facts["max"], "fences": facts["fences"]}
    if facts["q25"] < facts["q75"]:
        text = f"{count} values lie beyond {OUTLIER_FENCE_IQR} IQR of the quartiles"
        return Finding("outliers", "info", name, text, "data.clean.clip_iqr: 1.5", evidence)
    text = f"{count} values differ from both quartiles, which are {facts['q25']:g}"
    return Finding("outliers", "info", name, text, "data.encode.number: quantile", evidence)


def unusable_types(gone: Mapping[str, str]) -> list[Finding | None]:
    """`gone`: column -> why nothing can be learned from its type."""
    return [Finding("unusable_type", "warning", name, f"{why}: it is left out", drop_line(name),
                    {"reason": why}) for name, why in gone.items()]  # fmt: skip


def white_space(counts: Mapping[str, int]) -> Finding | None:
    """`counts`: column -> values with outer white space."""
    if not counts:
        return None
    what = f"{len(counts)} columns have" if len(counts) > 1 else "1 column has"
    text = f"{what} values with outer white space: {', '.join(list(counts)[:EXAMPLES])}"
    return Finding("white_space", "info", "", text, "none needed: it is always stripped", {"values": dict(counts)})


def duplicate_rows(repeated: int, rows: int, *, about: str = "") -> Finding | None:
    """`about`: the bound of an estimate."""
    if repeated <= 0:
        return None
    text = f"{repeated} of {rows} rows repeat another row{about}"
    return Finding("duplicate_rows", "warning", "", text, "data.clean.drop_duplicates: true", {"rows": repeated})


def target_finding(target: str, counts: Mapping[str, int], *, quantity: bool = False) -> Finding | None:
    """A target of one value, and a rare class. `counts`: class, or value of a `quantity`, -> rows."""
    if len(counts) < 2:
        return Finding("target", "error", target, "the target has fewer than two values", "data.target")
    total = sum(counts.values())
    smallest = min(sorted(counts), key=lambda word: counts[word])
    share = counts[smallest] / total
    if quantity or len(counts) > CLASSES_MAX or share >= RARE_SHARE:
        return None
    text = f"class {smallest!r} has {counts[smallest]} of {total} rows ({share:.1%})"
    return Finding("class_balance", "warning", target, text, "data.balance: {method: class_weights}",
                   {"counts": dict(counts)})  # fmt: skip


def overlap_finding(both: int, test_rows: int, *, about: str = "") -> Finding | None:
    """Rows that two files share."""
    if both <= 0:
        return None
    text = f"{both} of {test_rows} test rows have the features of a training row{about}"
    return Finding("overlap", "warning", "", text, "remove them from one of the two files", {"rows": both})


def other_labels(name: str, words: Sequence[str], others: Sequence[str]) -> Finding | None:
    """Texts of the test file (`others`) that are one of training's but for case and marks (`>50K.`)."""
    known = set(words)
    unknown = set(others) - known
    if not unknown or is_prose(words):
        return None
    pairs = [group for group in variants((*words, *unknown)) if unknown & set(group)]
    if not pairs:
        return None
    mapped = {word: next((w for w in group if w in known), group[0]) for group in pairs for word in group}
    fix = {word: to for word, to in mapped.items() if word in unknown}
    text = f"{len(fix)} values of the test file are spelt otherwise in training"
    return Finding("label_variants", "error", name, text, map_line(name, fix), {"map": fix})


def unseen_classes(name: str, words: Sequence[str], others: Sequence[str]) -> Finding | None:
    """Classes of the test file (`others`) that training never sees, and that are no other spelling of one it sees."""
    respelt = other_labels(name, words, others)
    unseen = sorted(set(others) - set(words) - set(respelt.evidence["map"] if respelt else ()))
    if not unseen or len(words) > CLASSES_MAX:
        return None
    shown = ", ".join(repr(word) for word in unseen[:EXAMPLES])
    text = f"{len(unseen)} classes of the test file are in no row of training: {shown}"
    return Finding("target", "error", name, text, map_line(name, dict.fromkeys(unseen[:EXAMPLES], "")),
                   {"unseen": unseen[:CLASSES_MAX]})  # fmt: skip


def variants(words: Sequence[str]) -> list[list[str]]:
    """Groups of texts that are equal but for case, white space and outer marks."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(" ".join(word.casefold().split()).strip(".,;:!"), []).append(word)
    return [sorted(group) for key, group in sorted(groups.items()) if key and len(group) > 1]


def is_prose(words: Sequence[str]) -> bool:
    """Sentences: many different texts of more than three words."""
    return len(words) > 64 and sum(word.count(" ") + 1 for word in words) > 3 * len(words)


def word_counts(texts: Texts) -> dict[str, int]:
    """Rows of each word that has any."""
    counts = np.bincount(texts.codes[texts.codes >= 0], minlength=len(texts.words))
    return {word: int(count) for word, count in zip(texts.words, counts, strict=True) if count}


def is_number(word: str) -> bool:
    """Whether the word is a number."""
    try:
        plain_float(word)
    except ValueError:
        return False
    return True
