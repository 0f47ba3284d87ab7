"""Weights & Biases: a run's points as history rows, its resolved spec as config.

Invariant: one W&B run a training, by its id; row n of the history is always the same points, so that what is there
already is left out when a run is sent again.

Covered: online, offline. Not covered: artifacts, sweeps.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from cluster.spec.tracking import WandbSpec
from trainers.trackers.points import Story

STEP = "update"
ENVIRONMENT = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
"""Set by the process that sends, where the user has not set them."""


def send_to_wandb(
    spec: WandbSpec, story: Story, *, name: str, parameters: Mapping[str, str], status: str, folder: Path
) -> str:
    """Returns the W&B run's id. `folder`: where its files go. Raises W&B's errors."""
    import wandb

    if spec.mode == "offline":
        for old in (folder / "wandb").glob(f"offline-run-*-{story.key}"):
            shutil.rmtree(old)  # it holds less than what is written now
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=spec.project,
        entity=spec.entity,
        mode=spec.mode,
        id=story.key,
        name=name,
        resume="allow" if spec.mode == "online" else None,
        dir=str(folder),
        config=dict(parameters),
        settings=wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True),
    )
    run.define_metric("*", step_metric=STEP)
    for number, row in enumerate(history_rows(story)):
        if number >= run.step:  # a run that goes on says how many rows it has
            run.log(row, step=number)
    run.summary["values_not_finite"] = story.left_out
    run.finish(exit_code=0 if status == "finished" else 1)
    return story.key


def history_rows(story: Story) -> list[dict[str, float]]:
    """Neighboring points of one step together, each row with its update."""
    rows: list[dict[str, float]] = []
    for point in story.points:
        if not rows or rows[-1][STEP] != point.step or point.name in rows[-1]:
            rows.append({STEP: point.step})
        rows[-1][point.name] = point.value
    return rows
