"""Where a training keeps its checkpoints, and what it does with those of an earlier spec.

    checkpoints/<digest of what makes it this training>[-n]/  training.json  e…-w…/

Invariant: a change of the spec that extends or moves a training goes on in the same folder, any other in one of its
own, and both are said. The state of an earlier training stays until this one has an epoch of its own, so that putting
the old values back goes on with it; after `--fresh` nobody goes on with it unless its mark is removed.

Covered: choice of the folder, what is said, what goes. Not covered: which change does what
(cluster/spec/resume_rules.py), checkpoints themselves (trainers/loop/checkpointing).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.atomic import digest_json, write_json
from cluster.pipeline.stage import StageContext
from cluster.spec.resume_rules import differences, lasting, values_of, why_of
from cluster.store.run_folder import FORGOTTEN, TRAINING
from cluster.telemetry.events import Message
from cluster.telemetry.view import counted

ROWS = "data (as prepared)"
SHOWN_CHANGES = 5


@dataclass(frozen=True)
class Earlier:
    """A folder of checkpoints, and what its training was."""

    folder: Path
    identity: str
    values: dict[str, Any]

    @property
    def forgotten(self) -> bool:
        """Whether it was there before `--fresh`."""
        return (self.folder / FORGOTTEN).exists()

    @property
    def newest(self) -> str:
        """Name of the newest checkpoint, `e<epochs done>-w<window>`; empty where there is none."""
        return max((path.name for path in self.folder.glob("e*-w*") if path.suffix == ""), default="")

    @property
    def epochs_done(self) -> int:
        """Whole epochs behind the newest checkpoint."""
        return int(self.newest.partition("-")[0][1:]) if self.newest else 0


def training_of(context: StageContext) -> str:
    """Name of this training: of the folder that `checkpoints_of` gives."""
    return _choose(context, _values(context)).folder.name


def checkpoints_of(context: StageContext) -> Path:
    """The folder of this training. Says where it goes on with a changed spec, and why it starts anew."""
    now = _values(context)
    chosen = _choose(context, now)
    others = [one for one in read_trainings(context.run.checkpoints) if one.newest]
    if chosen.newest:
        _say_going_on(context, chosen, now)
    elif others and not (chosen.folder / TRAINING).exists():
        _say_anew(context, max(others, key=lambda one: (one.folder / TRAINING).stat().st_mtime), now)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    write_json(chosen.folder / TRAINING, {"identity": chosen.identity, "values": now})
    return chosen.folder


def forget_others(folder: Path) -> None:
    """Remove the state of earlier trainings, once this one has an epoch."""
    trainings = read_trainings(folder.parent)
    if all(one.folder != folder or not one.epochs_done for one in trainings):
        return
    for one in trainings:
        if one.folder != folder:
            shutil.rmtree(one.folder, ignore_errors=True)


def read_trainings(base: Path) -> list[Earlier]:
    """All that are there and can be read."""
    found = []
    for path in sorted(base.glob(f"*/{TRAINING}")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            found.append(Earlier(path.parent, raw["identity"], raw["values"]))
        except (OSError, ValueError, KeyError):
            continue
    return found


def _values(context: StageContext) -> dict[str, Any]:
    prepared = context.records.get("prepare")
    return {**values_of(context.run_resolved.spec), ROWS: prepared.output_digest if prepared else None}


def _choose(context: StageContext, now: dict[str, Any]) -> Earlier:
    """What can be gone on with: the same training, with no more epochs than are wanted; else a new folder."""
    identity, epochs = digest_json(lasting(now)), context.run_resolved.spec.train.epochs
    there = read_trainings(context.run.checkpoints)
    same = [one for one in there if one.identity == identity and one.epochs_done <= epochs and not one.forgotten]
    new = Earlier(_free(context.run.checkpoints / identity[:16]), identity, now)
    return max(same, key=lambda one: one.newest, default=new)


def _free(path: Path) -> Path:
    """A folder that is not there: an earlier training of this name may have more epochs than are wanted now."""
    number, folder = 2, path
    while (folder / TRAINING).exists():
        folder, number = path.with_name(f"{path.name}-{number}"), number + 1
    return folder


def _say_going_on(context: StageContext, earlier: Earlier, now: dict[str, Any]) -> None:
    for path, change in differences(earlier.values, now).items():
        text = f"training goes on with {path} {change}: {why_of(path)}"
        context.events.emit(Message(stage=context.stage, text=text))


def _say_anew(context: StageContext, earlier: Earlier, now: dict[str, Any]) -> None:
    """Before the first update of a training that leaves another behind."""
    if earlier.forgotten:
        text = (
            f"training starts anew, as --fresh says. The earlier one, {counted(earlier.epochs_done, 'epoch')} long, "
            f"stays in {earlier.folder} until this one has an epoch: remove its file '{FORGOTTEN}' to go on with it"
        )
        context.events.emit(Message(level="info", stage=context.stage, text=text))
        return
    found = differences(lasting(earlier.values), lasting(now))
    if not found:
        found = {"train.epochs": f"{earlier.values.get('train.epochs')} -> {now['train.epochs']}"}
    names = ["the prepared rows" if path == ROWS else f"{path} ({change})" for path, change in found.items()]
    shown = ", ".join(names[:SHOWN_CHANGES]) + (f" and {len(names) - SHOWN_CHANGES} more" if names[5:] else "")
    text = (
        f"training starts anew, because what changed makes it another one: {shown}. The earlier one, "
        f"{counted(earlier.epochs_done, 'epoch')} long, stays until this one has an epoch: put the old values back to "
        "go on with it"
    )
    context.events.emit(Message(level="warning", stage=context.stage, text=text))
