"""Engines kept by what they depend on: graph, TensorRT version, GPU, profiles, flags. Portable is only the ONNX.

Invariant: an engine is used only if its key is the one of this node and its bytes are those that were written; any
other one is refused with the difference named, or built again.

Invariant: two processes of one node that want the same engine build it once; the second one waits.

Covered: key, read, write, the timing cache of a GPU. Not covered: building (tensorrt.py), running (serve/engines),
removing engines that are not wanted any more.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.atomic import digest_json, new_folder, sha256_file, write_bytes, write_json
from cluster.errors import BundleError
from trainers.export.graph_file import check_untrusted, external_files
from trainers.export.tensorrt import BuildRequest, BuiltEngine

PLAN, KEY = "engine.plan", "engine.json"
DIGITS = 16  # of a digest in a file name


@dataclass(frozen=True)
class EngineKey:
    """Everything an engine depends on."""

    graph_sha256: str
    """Over the ONNX file and its external data."""
    tensorrt: str
    gpu: str
    capability: str
    profiles: str
    flags: str

    @property
    def digest(self) -> str:
        return digest_json(asdict(self))


def engine_key(request: BuildRequest, *, tensorrt: str, gpu: str, capability: str) -> EngineKey:
    """The key of a request on a node."""
    model = check_untrusted(request.graph)
    files = [request.graph, *(request.graph.parent / name for name in sorted(external_files(model)))]
    flags = {
        "precision": request.precision,
        "level": request.optimization_level,
        "workspace_bytes": request.workspace_bytes,
    }
    return EngineKey(
        graph_sha256=digest_json([sha256_file(file) for file in files]),
        tensorrt=tensorrt,
        gpu=gpu,
        capability=capability,
        profiles=digest_json([profile.shapes for profile in request.profiles]),
        flags=digest_json(flags),
    )


def cached_engine(folder: Path, key: EngineKey, build: Callable[[], BuiltEngine]) -> tuple[Path, dict[str, Any]]:
    """Path and facts of the engine with this key, built where it is not there yet or is no longer whole."""
    target = folder / key.digest[:DIGITS]
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{target.name}.lock"):
        try:
            return open_engine(target, key)
        except BundleError:
            built = build()
        with new_folder(target) as fresh:
            (fresh / PLAN).write_bytes(built.plan)
            record = {"key": asdict(key), "sha256": sha256_file(fresh / PLAN), "facts": built.facts}
            write_json(fresh / KEY, record)
        return open_engine(target, key)


def timing_cache_path(folder: Path, *, tensorrt: str, gpu: str, capability: str) -> Path:
    """Where the measured kernel times of one GPU and version lie: they speed up later builds of other graphs."""
    return folder / f"timing-{digest_json([tensorrt, gpu, capability])[:DIGITS]}.cache"


def read_timing_cache(path: Path) -> bytes:
    """The kept kernel times, or none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def write_timing_cache(path: Path, content: bytes) -> None:
    """Keep kernel times for the next build."""
    if content:
        write_bytes(path, content)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock between processes of this node; a process that ends gives it back."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_engine(folder: Path, key: EngineKey) -> tuple[Path, dict[str, Any]]:
    """Path and facts of a kept engine. Raises BundleError when it was made for something else or was changed."""
    attempted = f"Cannot load the engine {folder}"
    try:
        record = json.loads((folder / KEY).read_text(encoding="utf-8"))
        had = record["key"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        raise BundleError(
            attempted, found=f"it has no readable {KEY}", rule="an engine lies beside its key", remedy="Build it here."
        ) from None
    differs = {name: (had.get(name), need) for name, need in asdict(key).items() if had.get(name) != need}
    if differs:
        raise BundleError(
            attempted,
            found="; ".join(f"{name} is {old!r}, this node needs {need!r}" for name, (old, need) in differs.items()),
            rule="an engine works on the GPU, the version and the graph that it was built for",
            remedy="Build it on this node, or serve the ONNX variant.",
        )
    if not (folder / PLAN).is_file() or sha256_file(folder / PLAN) != record.get("sha256"):
        raise BundleError(attempted, found=f"{PLAN} was changed after it was written", remedy="Build it again.")
    return folder / PLAN, record["facts"]
