"""What the searches of a run have tried, kept beside its stages: an interrupted search goes on, a finished one grows.

    search/<digest of what makes results comparable>/  search.json  journal.jsonl  repeats.jsonl

Invariant: nothing here is deleted. Values are compared only if the space, the metric, the model, the training and the
data were the same; the number of trials, of trials at a time and of repeats may change, and so may what does not change
a trial's worth (cluster/spec/resume_rules.py). A search that was interrupted is never left behind unnoticed: another
one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.atomic import digest_json, write_json
from cluster.errors import SpecError
from cluster.pipeline.stage import StageContext
from cluster.spec.resume_rules import is_comparable
from trainers.search.journal import read_journal

FOLDER = "search"
SEARCH = "search.json"
JOURNAL = "journal.jsonl"
REPEATS = "repeats.jsonl"
EXTENDS = frozenset({"trials", "concurrency", "repeats"})
"""Keys of `search` that change how much is tried, not what a trial is worth."""
SHOWN_CHANGES = 5


class SearchHistory:
    """One search's files. Called by the driver alone."""

    def __init__(self, base: Path, identity: Mapping[str, Any]) -> None:
        self._identity = dict(identity)
        self.folder = base / digest_json(self._identity)[:16]

    @property
    def journal(self) -> Path:
        """Trials, as trainers/search/journal.py writes them."""
        return self.folder / JOURNAL

    @property
    def repeats(self) -> Path:
        """Trials under other seeds."""
        return self.folder / REPEATS

    def open(self) -> None:
        """Make the folder, or go on in it. Raises SpecError where another search of the run was interrupted."""
        for other in sorted(self.folder.parent.glob(f"*/{SEARCH}")):
            told = json.loads(other.read_text(encoding="utf-8"))
            ended = sum(trial.ended for trial in read_journal(other.with_name(JOURNAL)))
            if other.parent != self.folder and not told["finished"] and ended:
                raise _refused(changes(told["identity"], self._identity), ended)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(finished=False)

    def finish(self) -> None:
        """Note that the search came to its end."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        write_json(self.folder / SEARCH, {"identity": self._identity, "finished": finished})


def identity_of(context: StageContext) -> dict[str, Any]:
    """Dotted path -> value of all that makes the values of two trials comparable."""
    spec = context.run_resolved.spec.model_dump(mode="json")
    prepared = context.records.get("prepare")
    parts = {
        "search": {key: value for key, value in spec["search"].items() if key not in EXTENDS},
        "train": spec["train"],
        "model": spec["model"],
        "seed": spec["seed"],
        "data (as prepared)": digest_json(prepared.files)[:12] if prepared else None,
    }
    return {path: value for path, value in _leaves(parts, "") if not is_comparable(path)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`path: old -> new` of all that differs."""
    paths = sorted({*before, *now}, key=lambda path: (not path.startswith("search"), path))
    return [
        f"{path}: {json.dumps(before.get(path))} -> {json.dumps(now.get(path))}"
        for path in paths
        if before.get(path) != now.get(path)
    ]


def _refused(found: list[str], ended: int) -> SpecError:
    shown = "; ".join(found[:SHOWN_CHANGES]) + (f"; and {len(found) - SHOWN_CHANGES} more" if found[5:] else "")
    return SpecError(
        "Cannot go on with the search",
        found=f"it was interrupted after {ended} trial{'s' if ended > 1 else ''}, and since then {shown}",
        rule="trials are compared only with trials of the same space, model, training and data; search.trials, "
        "search.concurrency and search.repeats may change",
        remedy="Put these values back to go on with it, give the new search a --name of its own, or begin anew with "
        "--fresh.",
    )


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}" if path else str(key))]
    return [(path, value)]
