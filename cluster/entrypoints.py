"""The one table that names the rooms, as strings. The floor starts work by name and never imports a room.

Each value is `module:function`. A test resolves every one of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

STAGE_ENTRYPOINTS: dict[str, str] = {
    "check": "trainers.stages:check",
    "prepare": "trainers.stages:prepare",
    "search": "trainers.stages:search",
    "train": "trainers.stages:train",
    "evaluate": "trainers.stages:evaluate",
    "compress": "trainers.stages:compress",
    "export": "trainers.stages:export",
    "deploy": "serve.deployments.stages:deploy",
    "predict": "serve.deployments.stages:predict",
}
"""Stage -> `function(StageContext) -> StageResult`, in the order in which they run."""

EARLY_ENTRYPOINTS: dict[str, str] = {
    "train": "trainers.launch.warm:warm_workers",
    "deploy": "serve.deployments.stages:start_early",
}
"""Stage -> `function(StageContext) -> Any`: starts what the stage will need, in a thread of the driver, while earlier
stages work. The stage finds the result in `context.early` and ends it."""

TENSORBOARD_ENTRYPOINT = "trainers.tensorboard:write_tensorboard"
"""`function(RunFolder) -> Path`: the run's events as TensorBoard files. The driver calls it when a run has ended."""

KEEPER_ENTRYPOINT = "serve.deployments.stages:keeper"
"""`function() -> (() -> bool)`: what a run with `--keep` asks again and again: whether its Ray is still needed."""

COMMAND_MODULES: dict[str, str] = {
    "driver": "cluster.pipeline",
    "explain": "trainers.explain",
    "data-check": "trainers.data.check",
    "diagnose": "trainers.diagnose",
    "compress": "trainers.compress",
    "endpoints": "serve.deployments",
    "serve": "serve",
    "tensorboard": "trainers.tensorboard",
    "trackers": "trainers.trackers",
}
"""What `manta` starts as `python -m MODULE …` in a process of its own."""


def load(entrypoint: str) -> Callable[..., Any]:
    """The function that `module:function` names. Imports the module: call it in the process that does the work."""
    module, _, name = entrypoint.partition(":")
    return getattr(importlib.import_module(module), name)
