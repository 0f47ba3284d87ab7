"""How many labels look wrong: cross-validated disagreement with a small forest (Northcutt et al. 2021, simplified).

Invariant: a row is judged by a model that was not fitted on it; the same table gives the same answer. An estimate, and
said so: it counts labels that a confident model contradicts, on at most `ROWS_MAX` rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cluster.bundle.transforms import Texts, Values
from trainers.data.quality.findings import Finding
from trainers.data.quality.leaks import by_alphabet

ROWS_MAX = 5_000
CLASSES_MAX = 20
CLASS_ROWS_MIN = 10
FOLDS = 5
TREES = 60
THREADS = 2  # the forest is the same with any number
LEAF_ROWS = 10  # smaller leaves are sure of themselves on pure chance
CONFIDENT = 0.8  # probability from which the model's word stands against the label's
OVERCONFIDENT = 0.25  # a model that is wrong this often where it is sure has no say over labels
NOISE_SHARE = 0.01  # below it the disagreement is within what any model gets wrong


def label_noise(target: str, labels: Texts, columns: Mapping[str, Values], rows: np.ndarray) -> list[Finding]:
    """A finding when more than `NOISE_SHARE` of the labels in `rows` are contradicted."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = rows[labels.codes[rows] >= 0]
    goal = labels.codes[rows]
    counts = np.bincount(goal, minlength=len(labels.words))
    features = [_feature(column, rows) for name, column in columns.items() if name != target]
    if not features or not 2 <= (counts > 0).sum() <= CLASSES_MAX or counts[counts > 0].min() < CLASS_ROWS_MIN:
        return []
    forest = RandomForestClassifier(TREES, min_samples_leaf=LEAF_ROWS, random_state=0, n_jobs=THREADS)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    chances = cross_val_predict(forest, np.stack(features, axis=1), goal, cv=folds, method="predict_proba")
    classes = np.unique(goal)
    said, best = classes[chances.argmax(axis=1)], chances.max(axis=1)
    wrong = np.flatnonzero((said != goal) & (best >= CONFIDENT))
    share = len(wrong) / len(goal)
    if share < NOISE_SHARE or len(wrong) > OVERCONFIDENT * (best >= CONFIDENT).sum():
        return []
    worst = wrong[np.argsort(-best[wrong], kind="stable")][:5]
    examples = [
        {"row": int(rows[at]), "label": labels.words[goal[at]], "expected": labels.words[said[at]]} for at in worst
    ]
    text = f"about {share:.1%} of the labels contradict the features (estimate on {len(goal)} rows)"
    evidence = {"share": share, "rows": len(goal), "disagreement": float((said != goal).mean()), "examples": examples}
    return [Finding("label_noise", "warning", target, text, "look at these rows of the file", evidence)]


def _feature(column: Values, rows: np.ndarray) -> np.ndarray:
    """One column as finite numbers: missing numbers below all others, texts by the alphabet."""
    if isinstance(column, Texts):
        return by_alphabet(column)[rows].astype(np.float32)
    values = column[rows]
    finite = values[np.isfinite(values)]
    floor = float(finite.min() - 1.0) if len(finite) else 0.0
    return np.clip(np.where(np.isfinite(values), values, floor), -1e30, 1e30).astype(np.float32)
