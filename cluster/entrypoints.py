"""Names of the rooms' functions and commands, as strings. The floor starts work by name and never imports a room.

Stages are in a table of their own (cluster/pipeline/stages.py). A test resolves every name.
"""

from __future__ import annotations

import importlib
from typing import Any

TENSORBOARD_ENTRYPOINT = "trainers.tensorboard:write_tensorboard"
"""`function(RunFolder) -> Path`: the run's events as TensorBoard files. The driver calls it when a run has ended."""

RAY_LIFETIME_ENTRYPOINT = "serve.deployments.stages:ray_lifetime"
"""`function() -> (() -> bool)`: whether the Ray of a run with `--keep` is still needed; called again and again."""

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


def load(entrypoint: str) -> Any:
    """The function or class that `module:name` names. Imports the module: call it in the process that does the work."""
    module, _, name = entrypoint.partition(":")
    return getattr(importlib.import_module(module), name)
