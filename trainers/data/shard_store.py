"""Prepared shards in a store that other nodes reach (a folder, S3, HTTP… through fsspec), and their copy on each node.

    STORE/<first 16 hex digits of the manifest's sha256>/…shards…, shards.json      shards.json: {file: [bytes, sha256]}

Invariant: `shards.json` is written last and names every file with its hash, and the set's name is the hash of that
list, so that a reader gets exactly that set, complete and verified, or an error; a set is never changed.

Covered: publish, fetch once a node, several readers at once. Not covered: deleting old sets; the store's rights.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import Any

import fsspec

from cluster.atomic import new_folder, sha256_file
from cluster.errors import DataError, MissingDependencyError, ResourceError
from cluster.pipeline.stage import StageContext
from cluster.store.stage_facts import PrepareFacts
from cluster.temporary import shared_folder

LIST = "shards.json"
DIGEST_DIGITS = 16


class StoredShards(PosixPath):
    """The folder of prepared data, and where to get it on a node that does not see the folder."""

    store: str = ""
    digest: str = ""

    @classmethod
    def of(cls, folder: Path, store: str, digest: str) -> StoredShards:
        found = cls(folder)
        found.store, found.digest = store, digest
        return found

    def resolve(self, strict: bool = False) -> StoredShards:
        return StoredShards.of(Path(self).resolve(strict), self.store, self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredShards.of, (Path(str(self)), self.store, self.digest)

    def local(self) -> Path:
        """The folder itself where this node sees it, else this node's copy. Raises DataError, ResourceError."""
        folder = Path(str(self))
        return folder if not self.store or folder.is_dir() else fetch_shards(self.store, self.digest)


def prepared_of(context: StageContext) -> Path:
    """What a stage hands to workers as the prepared data."""
    folder, facts = context.files("prepare"), context.facts(PrepareFacts)
    stored = facts.shards if facts else None
    return StoredShards.of(folder.resolve(), stored.store, stored.digest) if stored else folder


def publish_shards(folder: Path, store: str) -> str:
    """Copy prepared data into the store and return its digest. A set that is there is not copied again.

    Raises ResourceError, MissingDependencyError.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256_file(path)] for path in paths}
    listed = json.dumps(files, sort_keys=True).encode()
    digest = hashlib.sha256(listed).hexdigest()
    with _opened(f"Cannot publish the shards to {store}", store) as (system, root):
        place = f"{root}/{digest[:DIGEST_DIGITS]}"
        if system.exists(f"{place}/{LIST}"):
            return digest
        for name in files:
            system.makedirs(f"{place}/{name}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(folder / name), f"{place}/{name}")
        partial = f"{place}/{LIST}.partial"
        system.pipe_file(partial, listed)
        system.mv(partial, f"{place}/{LIST}")
    return digest


def fetch_shards(store: str, digest: str, cache: Path | None = None) -> Path:
    """This node's verified copy of a set: the first caller fetches it. Raises DataError, ResourceError."""
    cache = cache or shared_folder("shards")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = cache / digest[:DIGEST_DIGITS]
    with (cache / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _fetch(store, digest, target)
    return target


def _fetch(store: str, digest: str, target: Path) -> None:
    attempted = f"Cannot fetch the shards {target.name} from {store}"
    with _opened(attempted, store) as (system, root), new_folder(target) as folder:
        place = f"{root}/{target.name}"
        try:
            listed = system.cat_file(f"{place}/{LIST}")
        except FileNotFoundError:
            raise _broken(attempted, f"the set has no {LIST}: it was never published whole") from None
        if hashlib.sha256(listed).hexdigest() != digest:
            raise _broken(attempted, f"{LIST} is not the one that the prepare stage noted")
        for name, (size, sha256) in json.loads(listed).items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get_file(f"{place}/{name}", str(file))
            except FileNotFoundError:
                raise _broken(attempted, f"{name} is gone") from None
            if file.stat().st_size != size or sha256_file(file) != sha256:
                raise _broken(attempted, f"{name} was changed or cut short")


@contextmanager
def _opened(attempted: str, store: str) -> Iterator[tuple[Any, str]]:
    """The store's file system and root; its errors become ours."""
    try:
        system, root = fsspec.core.url_to_fs(store)
        yield system, root.rstrip("/")
    except ImportError as error:
        raise MissingDependencyError(attempted, found=str(error), remedy="Install the package it names.") from error
    except (OSError, ValueError) as error:
        raise ResourceError(
            attempted, found=f"{type(error).__name__}: {error}",
            remedy="Look at data.shards_url, and that the store can be reached from this host.",
        ) from error  # fmt: skip


def _broken(attempted: str, found: str) -> DataError:
    return DataError(
        attempted, found=found, rule="a set of shards is taken whole, with the hashes that its list names",
        remedy="Remove the set from the store and the prepare stage's folder from the run, and run it again.",
    )  # fmt: skip
