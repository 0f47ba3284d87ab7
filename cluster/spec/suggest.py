"""An unknown key -> the key that was probably meant, wherever in the spec it lies.

    train.learning_rate -> train.optimizer.learning_rate     the right name in the wrong section
    train.lr            -> train.optimizer.learning_rate     the name that other tools use
    train.epoch         -> train.epochs                      a slip of the pen

Invariant: what is suggested is a valid path of the format; where nothing is near, nothing is suggested.

Covered: sections and their unions; a search space's paths ask here too (search_rules.py). Not covered: keys inside
other free mappings.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from typing import get_args

from pydantic import BaseModel

from cluster.spec.run import RunSpec

NEAR, NEAR_ELSEWHERE = 0.5, 0.8  # difflib ratios: in another section a key must be nearly the same
DEPTH_MAX = 8

SYNONYMS: dict[str, str] = {
    "accumulate_grad_batches": "batch_size_per_worker",
    "amp": "precision",
    "batch": "batch_size_global",
    "batch_size": "batch_size_global",
    "bs": "batch_size_global",
    "dtype": "precision",
    "early_stop": "early_stopping",
    "global_batch_size": "batch_size_global",
    "grad_accum": "batch_size_per_worker",
    "grad_clip": "clip_norm",
    "gradient_accumulation_steps": "batch_size_per_worker",
    "gradient_clip_val": "clip_norm",
    "label": "target",
    "label_column": "target",
    "log_every_n_steps": "log_every_updates",
    "logging_steps": "log_every_updates",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "max_batch_size": "max_rows",
    "max_epochs": "epochs",
    "max_steps": "max_updates",
    "max_time": "max_time_s",
    "min_lr": "eta_min",
    "norm_type": "clip_norm_type",
    "max_grad_norm": "clip_norm",
    "micro_batch_size": "batch_size_per_worker",
    "mixed_precision": "precision",
    "model_type": "family",
    "n_epochs": "epochs",
    "n_trials": "trials",
    "num_epochs": "epochs",
    "num_gpus": "workers",
    "num_samples": "trials",
    "num_train_epochs": "epochs",
    "num_trials": "trials",
    "num_workers": "workers",
    "optim": "optimizer",
    "per_device_train_batch_size": "batch_size_per_worker",
    "random_seed": "seed",
    "random_state": "seed",
    "scheduler": "schedule",
    "target_column": "target",
    "training": "train",
    "tuning": "search",
    "warmup_steps": "warmup_updates",
    "wd": "weight_decay",
    "world_size": "workers",
}
"""Other tools' names (PyTorch Lightning, Hugging Face, scikit-learn, Ray, Triton) -> ours."""


def nearest_key(path: Sequence[str | int], fields: Sequence[str], root: type[BaseModel] = RunSpec) -> str | None:
    """The dotted path that was meant by an unknown one. `fields`: valid keys of the mapping it lies in.

    `root`: the section that paths begin in.
    """
    parent, key = [str(part) for part in path[:-1]], str(path[-1])
    here = ".".join(parent)
    meant = SYNONYMS.get(key.lower())
    if meant in fields:
        return _join(here, meant)
    for name in (key, meant):
        places = [place for place in _places(name or "", root) if place != _join(here, key)]  # of another union member
        if name is not None and (found := _closest_place(places, parent)):
            return found
    if close := difflib.get_close_matches(key, fields, n=1, cutoff=NEAR):
        return _join(here, close[0])
    names = {place.rpartition(".")[2] for place in all_paths(root)}
    if close := difflib.get_close_matches(key, sorted(names), n=1, cutoff=NEAR_ELSEWHERE):
        return _closest_place([place for place in _places(close[0], root) if place != _join(here, key)], parent)
    return None


@cache
def all_paths(root: type[BaseModel] = RunSpec) -> tuple[str, ...]:
    """Every dotted path of the format below `root`, of all members of its unions."""
    found: dict[str, None] = {}

    def visit(model: type[BaseModel], prefix: str, depth: int) -> None:
        for name, field in model.model_fields.items():
            path = _join(prefix, name)
            found[path] = None
            if depth < DEPTH_MAX:
                for inner in models_of(field.annotation):
                    visit(inner, path, depth + 1)

    visit(root, "", 0)
    return tuple(found)


def models_of(annotation: object) -> list[type[BaseModel]]:
    """The sections that an annotation may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_of(part)]


def _places(name: str, root: type[BaseModel]) -> list[str]:
    return [path for path in all_paths(root) if path.rpartition(".")[2] == name]


def _closest_place(places: list[str], parent: Sequence[str]) -> str | None:
    """The one that shares most of its way with `parent`; then the one nearest to the top."""

    def distance(place: str) -> tuple[int, int]:
        parts = place.split(".")
        shared = 0
        while shared < min(len(parts), len(parent)) and parts[shared] == parent[shared]:
            shared += 1
        return -shared, len(parts)

    return min(places, key=distance, default=None)


def _join(prefix: str, name: str | None) -> str:
    return f"{prefix}.{name}" if prefix else str(name)
