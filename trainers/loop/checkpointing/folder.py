"""Checkpoints on disk: everything that changes, hashed, renamed into place last.

    checkpoints/e0003-w000000/   model.safetensors  optimizer.safetensors  [ema.safetensors]  [best.safetensors]
                                 workers.safetensors  state.json  manifest.json
    checkpoints/fence.json       which attempt may write here; fence.lock is held while one does

Invariant: a folder without `.partial` is complete or damaged, which its manifest decides; the newest one whose files
all hash to the manifest's values wins. An attempt that was replaced can no longer write: it fills a folder
of its own name, and reads the fence under the lock that a new attempt takes to move it. Nothing in it is pickled.

Covered: write, verify, choose, retain. Not covered: what goes in (snapshot.py).
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cluster.atomic import PARTIAL, disk_errors, hash_tree, replace_folder, sync_tree, write_json
from cluster.errors import CheckpointError
from cluster.spec.train import BestSpec, CheckpointSpec

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
STATE = "state.json"
FENCE = "fence.json"
LOCK = "fence.lock"
LOCK_WAIT_S = 60.0  # renaming and removing a few folders takes far less; a holder that was stopped never ends
LOCK_POLL_S = 0.02


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
        with self._alone():
            write_json(self.path / FENCE, {"token": self.token})
        for partial in self.path.glob(f"*{PARTIAL}"):
            shutil.rmtree(partial, ignore_errors=True)

    def write(self, name: str, snapshot: Snapshot, value: float | None) -> Path:
        """Write a checkpoint, then remove those that are no longer needed. `value`: the epoch's best-metric.

        Raises DiskFullError (all earlier ones stay) or CheckpointError when another attempt has taken over, or when
        the disk fails.
        """
        target, partial = self.path / name, self.path / f"{name}.{self.token[:8]}{PARTIAL}"
        try:
            with disk_errors(f"Cannot write checkpoint {target}", self.path):
                self._fill(partial, snapshot, value)
                with self._alone():
                    self._check_fence(name)
                    replace_folder(partial, target)
                    self._retain()
        except OSError as error:
            self._check_fence(name)  # whoever takes over removes what others have half done
            raise CheckpointError(
                f"Cannot write checkpoint {target}",
                found=str(error),
                rule="the checkpoints before it are whole",
                remedy="Look at the disk, then run the same command again: it goes on from the last checkpoint.",
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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
        from safetensors.torch import load_file

        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        return Snapshot(tensors, decode_floats(json.loads((folder / STATE).read_text(encoding="utf-8"))))

    def _fill(self, folder: Path, snapshot: Snapshot, value: float | None) -> None:
        folder.mkdir(parents=True)
        for file, tensors in snapshot.tensors.items():
            _save(tensors, folder / f"{file}.safetensors")
        write_json(folder / STATE, encode_floats(snapshot.state))
        manifest = {"format_version": FORMAT_VERSION, "files": hash_tree(folder), "value": value}
        write_json(folder / MANIFEST, encode_floats(manifest))
        sync_tree(folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock. The kernel drops it when its holder dies. Raises CheckpointError after LOCK_WAIT_S."""
        deadline = time.monotonic() + LOCK_WAIT_S
        with (self.path / LOCK).open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise _lock_held(self.path) from None
                    time.sleep(LOCK_POLL_S)
            yield

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
        sign = 1 if self.best.direction == "min" else -1
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
    """safetensors refuses shared storage and gaps: what is saved is a plain copy of each. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # its way to say "no space left": "… I/O error: … (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number.group(1)) if number else errno.EIO, str(error)) from error


def _lock_held(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"Cannot use the checkpoints in {folder}",
        found=f"another process has held {LOCK} for {LOCK_WAIT_S:.0f} s",
        rule="one attempt at a time moves checkpoints",
        remedy="End the older process of this run (it may be stopped), then run the same command again.",
    )


def _value(folder: Path) -> float | None:
    try:
        value = decode_floats(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))).get("value")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, int | float) and math.isfinite(value) else None
