"""Checkpoints on disk: everything that changes, hashed, renamed into place last.

    checkpoints/e0003-w000000/   model.safetensors  optimizer.safetensors  [ema.safetensors]  [best.safetensors]
                                 workers.safetensors  state.json  manifest.json
    checkpoints/fence.json       which attempt may write here

Invariant: a folder without `.partial` is complete or damaged, and its manifest tells which; the newest one whose
every file hashes to what the manifest says wins; an attempt that was replaced can no longer write. Nothing in it is
pickled.

Covered: write, verify, choose, retain. Not covered: what goes in (snapshot.py).
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cluster.atomic import PARTIAL, disk_errors, hash_tree, new_folder, write_json
from cluster.errors import CheckpointError
from cluster.spec.train import BestSpec, CheckpointSpec

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
FENCE = "fence.json"


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory."""

    tensors: dict[str, dict[str, torch.Tensor]]
    """File name without suffix -> name -> tensor."""
    state: dict[str, Any]
    """JSON-able; floats may be infinite."""


@dataclass
class CheckpointFolder:
    """The checkpoints of one run. One worker writes."""

    path: Path
    spec: CheckpointSpec
    best: BestSpec
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def take_over(self) -> None:
        """From now on only this attempt writes here; leftovers of a crash are removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / FENCE, {"token": self.token})
        for partial in self.path.glob(f"*{PARTIAL}"):
            shutil.rmtree(partial, ignore_errors=True)

    def write(self, name: str, snapshot: Snapshot, value: float | None) -> Path:
        """Write a checkpoint, then remove those that are no longer needed. `value`: the epoch's best-metric.

        Raises DiskFullError (all earlier ones stay) or CheckpointError when another attempt has taken over.
        """
        target = self.path / name
        with new_folder(target) as folder, disk_errors(f"Cannot write checkpoint {target}", self.path):
            for file, tensors in snapshot.tensors.items():
                _save(tensors, folder / f"{file}.safetensors")
            write_json(folder / STATE, encode_floats(snapshot.state))
            manifest = {"format_version": FORMAT_VERSION, "files": hash_tree(folder), "value": value}
            write_json(folder / MANIFEST, encode_floats(manifest))
            self._check_fence(name)
        self._retain()
        return target

    def names(self) -> list[str]:
        """Complete or damaged checkpoints, newest first."""
        folders = (path for path in self.path.glob("e*-w*") if path.is_dir() and not path.name.endswith(PARTIAL))
        return sorted((path.name for path in folders), reverse=True)

    def newest_valid(self) -> tuple[str | None, list[str]]:
        """Its name, and one line for each newer one that is damaged."""
        problems: list[str] = []
        for name in self.names():
            problem = damage(self.path / name)
            if problem is None:
                return name, problems
            problems.append(f"checkpoint {name} is damaged and left out: {problem}")
        return None, problems

    def read(self, name: str) -> Snapshot:
        """A verified checkpoint. Raises CheckpointError."""
        folder = self.path / name
        if problem := damage(folder):
            raise CheckpointError(
                f"Cannot read checkpoint {folder}",
                found=problem,
                rule="every file hashes to what the manifest says",
                remedy="Remove that folder; the run goes on from the one before it.",
            )
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        return Snapshot(tensors, decode_floats(json.loads((folder / STATE).read_text(encoding="utf-8"))))

    def _check_fence(self, name: str) -> None:
        try:
            token = json.loads((self.path / FENCE).read_text(encoding="utf-8"))["token"]
        except (FileNotFoundError, json.JSONDecodeError):
            token = None
        if token != self.token:
            raise CheckpointError(
                f"Cannot write checkpoint {name}",
                found="another attempt of this run has taken over its checkpoints",
                rule="only the latest attempt writes",
                remedy="Nothing is lost: the other attempt goes on.",
            )

    def _retain(self) -> None:
        names = self.names()
        keep = set(names[: self.spec.keep_last])
        sign = 1 if self.best.mode == "min" else -1
        rated = [(sign * value, name) for name in names if (value := _value(self.path / name)) is not None]
        keep |= {name for _, name in sorted(rated)[: self.spec.keep_best]}
        for name in set(names) - keep:
            shutil.rmtree(self.path / name)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = manifest["files"]
        version = manifest["format_version"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    if version != FORMAT_VERSION:
        return f"it has format {version}, this version reads {FORMAT_VERSION}"
    found = hash_tree(folder, exclude=frozenset({MANIFEST}))
    wrong = [name for name in listed if found.get(name) != listed[name]]
    return f"{', '.join(sorted(wrong))} missing or changed" if wrong else None


def encode_floats(value: Any) -> Any:
    """NaN and infinities as tagged text, so that JSON stays JSON and nothing is lost."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {key: encode_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_floats(item) for item in value]
    return value


def decode_floats(value: Any) -> Any:
    """Undo `encode_floats`."""
    if isinstance(value, dict):
        if set(value) == {"float"} and isinstance(value["float"], str):
            return float(value["float"])
        return {key: decode_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode_floats(item) for item in value]
    return value


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """safetensors refuses shared storage and gaps: what is saved is a plain copy of each."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def _value(folder: Path) -> float | None:
    try:
        value = decode_floats(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))).get("value")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, int | float) and math.isfinite(value) else None
