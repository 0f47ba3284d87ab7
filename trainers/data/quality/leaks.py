"""Columns that alone tell the target: each is tried by itself on rows that it was not fitted on.

Invariant: the answer depends on the rows' content, never on where they stand in the file: rows are shuffled into the
folds, and texts are numbered by the alphabet.

Covered: the target under another name, row numbers of a file that is sorted by its target. Not covered: columns that
tell it together.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cluster.bundle.transforms import Texts, Values
from cluster.spec.remedy import drop_line
from trainers.data.quality.findings import Finding
from trainers.data.quality.rules import CLASSES_MAX

FOLDS = 3
SCORE = 0.999  # a column that orders or groups the classes this well is the target under another name
RUNS_ROWS_MIN = 100  # of fewer rows a useful column may well divide the classes
ROWS_MAX = 200_000


def find_leaks(target: str, labels: Texts, values: Mapping[str, Values]) -> list[Finding]:
    """Columns that alone predict the target of rows they were not fitted on."""
    counts = np.bincount(labels.codes[labels.codes >= 0])
    counts = counts[counts > 0]
    if not 2 <= len(counts) <= CLASSES_MAX or counts.min() < FOLDS:
        return []
    rows = np.flatnonzero(labels.codes >= 0)[:ROWS_MAX]
    goal, found = labels.codes[rows], []
    for name, column in values.items():
        if name == target:
            continue
        feature = by_alphabet(column)[rows] if isinstance(column, Texts) else column[rows]
        feature = np.nan_to_num(feature, posinf=0, neginf=0)
        evidence: dict[str, object] = {"rows": len(rows)}
        if _divides(feature, goal):
            text = f"in its order the rows are sorted by '{target}': it alone determines the class"
            evidence["score"] = 1.0
        elif (score := _alone(feature[:, None], goal)) >= SCORE:
            text = f"it alone predicts '{target}' (balanced accuracy {score:.3f} on rows not fitted)"
            evidence["score"] = score
        else:
            continue
        found.append(Finding("leakage", "error", name, text, drop_line(name), evidence))
    return found


def by_alphabet(column: Texts) -> np.ndarray:
    """(N,) float64 place of each word in the alphabet, -1 where missing: codes follow the rows, which is no fact."""
    places = np.empty(len(column.words) + 1)
    places[np.argsort(np.array(column.words, dtype=object), kind="stable")] = np.arange(len(column.words))
    places[-1] = -1
    return places[column.codes]


def _divides(feature: np.ndarray, goal: np.ndarray) -> bool:
    """Whether the rows, ordered by the column, come class by class, and no value is in two classes."""
    if len(goal) < RUNS_ROWS_MIN:
        return False
    order = np.lexsort((goal, feature))
    change = np.flatnonzero(np.diff(goal[order]))
    apart = feature[order][change] != feature[order][change + 1]
    return bool(len(change) + 1 == len(np.unique(goal)) and apart.all())


def _alone(feature: np.ndarray, goal: np.ndarray) -> float:
    """Cross-validated balanced accuracy of one column; 0 as soon as it cannot reach `SCORE` any more."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.tree import DecisionTreeClassifier

    scores: list[float] = []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(feature, goal):
        tree = DecisionTreeClassifier(max_depth=6, min_samples_leaf=2, random_state=0).fit(feature[train], goal[train])
        scores.append(float(balanced_accuracy_score(goal[test], tree.predict(feature[test]))))
        if sum(scores) + FOLDS - len(scores) < SCORE * FOLDS:
            return 0.0
    return float(np.mean(scores))
