"""The peer of the quality benchmark: the same findings in plain pandas, with the whole file in memory.

    python -m benchmarks.data.quality_pandas FILE --target T        prints {"rows", "findings": [[rule, column], …]}

Invariant: vectorized pandas throughout (no loop over rows); the two findings that need a model see the same number of
rows as Manta's do, so that neither side wins by looking at less.
"""

from __future__ import annotations

import argparse
import json
import re

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.tree import DecisionTreeClassifier

MISSING = ["", "?", "NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "-", "unknown"]
SENTINELS = [-9.0, -99.0, -999.0, -9999.0, -99999.0, 99.0, 999.0, 9999.0, 99999.0, 999999.0]
DATE = r"^(\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2})|\d{4}[./]\d{1,2}[./]\d{1,2})( .*)?$"
LEAK_ROWS, NOISE_ROWS = 32_768, 5_000

Found = set[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--target", required=True)
    arguments = parser.parse_args()
    frame = pd.read_parquet(arguments.file)
    rows, found = len(frame), report(frame, arguments.target)
    print(json.dumps({"rows": rows, "findings": sorted(found)}))


def report(frame: pd.DataFrame, target: str) -> Found:
    """Every finding as (rule, column)."""
    found: Found = set()
    facts = {}
    spaced = False
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column):
            facts[name] = number_column(name, column, target, found)
        else:
            stripped = column.str.strip()
            spaced = spaced or bool((stripped != column).any())
            column = stripped.mask(stripped.isin(MISSING))
            frame[name] = column
            facts[name] = text_column(name, column, target, found)
    if spaced:
        found.add(("white_space", ""))
    if frame.duplicated().any():
        found.add(("duplicate_rows", ""))
    shares = frame[target].value_counts(normalize=True)
    if len(shares) <= 50 and shares.min() < 0.05:
        found.add(("class_balance", target))
    near_duplicates(frame, target, found)
    models(frame, target, found)
    return found


def common(name: str, column: pd.Series, target: str, found: Found) -> dict:
    missing, different = int(column.isna().sum()), column.nunique()
    if missing:
        found.add(("missing", name))
    if different == 1 and not missing:
        found.add(("constant", name))
    return {"missing": missing, "different": different}


def number_column(name: str, column: pd.Series, target: str, found: Found) -> dict:
    facts = common(name, column, target, found)
    infinite = int(np.isinf(column).sum())
    if infinite:
        found.add(("infinite", name))
    finite = column[np.isfinite(column)]
    low, q1, median, q3, high = finite.quantile([0, 0.25, 0.5, 0.75, 1])
    fence = 1.5 * (q3 - q1)
    outliers = int(((finite < q1 - fence) | (finite > q3 + fence)).sum()) if fence > 0 else 0
    if outliers and name != target:
        found.add(("outliers", name))
    counts, edges = np.histogram(finite, bins=20)
    for end in (low, high):
        if end in SENTINELS and (finite == end).sum() >= 2:
            rest = finite[finite != end]
            if len(rest) and abs(rest.min() - end if end == low else end - rest.max()) >= rest.max() - rest.min():
                found.add(("hidden_missing", name))
    mean = finite.mean()
    return facts | {"quantiles": [low, q1, median, q3, high], "mean": mean, "histogram": [counts, edges]}


def text_column(name: str, column: pd.Series, target: str, found: Found) -> dict:
    facts = common(name, column, target, found)
    counts = column.value_counts()
    words = counts.index.to_series()
    if facts["different"] >= 0.99 * (len(column) - facts["missing"]):
        found.add(("identifier", name))
    numeric = pd.to_numeric(words, errors="coerce").notna()
    if numeric.any() and not numeric.all():
        found.add(("mixed_types", name))
    if not (len(words) > 64 and words.str.count(" ").mean() + 1 > 3):
        plain = words.str.casefold().str.replace(r"\s+", " ", regex=True).str.strip(" .,;:!")
        if plain.duplicated().any():
            found.add(("label_variants", name))
    if words.str.match(re.compile(DATE)).mean() >= 0.95:
        found.add(("date_like", name))
    return facts | {"most_frequent": counts.head(10)}


def near_duplicates(frame: pd.DataFrame, target: str, found: Found) -> None:
    drawn = frame.drop(columns=[target]).sample(NOISE_ROWS, random_state=0).replace([np.inf, -np.inf], np.nan)
    numbers = drawn.select_dtypes("number")
    correlation = numbers.corr().abs()
    for index, name in enumerate(numbers.columns):
        if (correlation.iloc[index, :index] >= 0.999).any():
            found.add(("near_duplicate", name))
    texts = {name: pd.factorize(drawn[name])[0] for name in drawn.columns if name not in numbers.columns}
    names = [name for name, codes in texts.items() if len(np.unique(codes)) > 1]
    for index, name in enumerate(names):
        if any((texts[name] == texts[other]).mean() >= 0.999 for other in names[:index]):
            found.add(("near_duplicate", name))


def models(frame: pd.DataFrame, target: str, found: Found) -> None:
    drawn = frame.sample(LEAK_ROWS, random_state=0)
    goal = pd.factorize(drawn[target])[0]
    features = pd.DataFrame(index=drawn.index)
    for name in drawn.columns.drop(target):
        column = drawn[name]
        numeric = pd.api.types.is_numeric_dtype(column)
        codes = column.replace([np.inf, -np.inf], np.nan).fillna(-1e9) if numeric else pd.factorize(column)[0]
        features[name] = np.asarray(codes, dtype=np.float64)
        tree = DecisionTreeClassifier(max_depth=6, min_samples_leaf=2, random_state=0)
        score = cross_val_score(tree, features[[name]].to_numpy(), goal, cv=3, scoring="balanced_accuracy").mean()
        if score >= 0.999:
            found.add(("leakage", name))
    few, few_goal = features.to_numpy()[:NOISE_ROWS], goal[:NOISE_ROWS]
    forest = RandomForestClassifier(60, min_samples_leaf=10, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chances = cross_val_predict(forest, few, few_goal, cv=folds, method="predict_proba")
    wrong = (chances.argmax(axis=1) != few_goal) & (chances.max(axis=1) >= 0.8)
    if wrong.mean() >= 0.01 and wrong.sum() <= 0.25 * (chances.max(axis=1) >= 0.8).sum():
        found.add(("label_noise", target))


if __name__ == "__main__":
    main()
