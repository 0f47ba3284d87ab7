"""Bundles in a store that other machines can reach: a folder, S3, GCS, Azure, HTTP… through fsspec.

    STORE/<run>/<version>/…files…, manifest.json     version: first 16 hex digits of the manifest's sha256
    STORE/<run>/latest.json                          {"version": …, "manifest_sha256": …}

Invariant: `latest.json` is written last, so what it names is complete; a fetched bundle takes its place on disk only
when every byte has the size and sha256 of the manifest, and the manifest the sha256 of `latest.json`.

Covered: publish, list, fetch. Not covered: deleting old versions, access rights (the store's own).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from cluster.atomic import new_folder, sha256_file
from cluster.bundle.files import Bundle, is_inside, open_bundle, read_manifest
from cluster.bundle.manifest import MANIFEST
from cluster.errors import BundleError, MissingDependencyError, RequestError, ResourceError

LATEST = "latest.json"
VERSION_DIGITS = 16  # of a sha256: collisions are out of reach for the versions of one run


@dataclass(frozen=True)
class Published:
    """Where a bundle lies in a store."""

    store: str
    name: str
    version: str
    manifest_sha256: str

    @property
    def location(self) -> str:
        return f"{self.store.rstrip('/')}/{self.name}/{self.version}"


def publish_bundle(folder: Path, store: str, name: str) -> Published:
    """Copy a bundle into the store and make it the run's latest. The same bundle again changes nothing.

    Raises BundleError for a bundle that is not whole, ResourceError for a store that cannot be written.
    """
    bundle = open_bundle(folder)
    digest = sha256_file(folder / MANIFEST)
    published = Published(store, name, digest[:VERSION_DIGITS], digest)
    with _store(f"Cannot publish bundle '{name}' to {store}", store) as (files, root):
        place = f"{root}/{name}/{published.version}"
        for file in [*sorted(bundle.manifest.files), MANIFEST]:  # the manifest last: it says that the rest is there
            files.makedirs(f"{place}/{file}".rpartition("/")[0], exist_ok=True)
            files.put_file(str(folder / file), f"{place}/{file}")
        latest = {"version": published.version, "manifest_sha256": digest}
        _replace(files, f"{root}/{name}/{LATEST}", json.dumps(latest).encode())
    return published


def check_store(store: str, name: str) -> None:
    """Raise what `publish_bundle` would, as far as it is known before there is a bundle: the URL, its package, and
    for a folder the right to write there."""
    with _store(f"Cannot publish bundle '{name}' to {store}", store) as (files, root):
        if _is_local(files):
            files.makedirs(f"{root}/{name}", exist_ok=True)


def fetch_bundle(store: str, name: str, target: Path, *, version: str | None = None) -> Bundle:
    """Copy a run's bundle (the latest, or a version) from the store to `target` and verify every byte.

    On an error `target` is untouched. Raises RequestError, BundleError, ResourceError, DiskFullError.
    """
    attempted = f"Cannot fetch bundle '{name}' from {store}"
    with _store(attempted, store) as (files, root):
        found = _latest(attempted, files, root, name) if version is None else Published(store, name, version, version)
        place = f"{root}/{name}/{found.version}"
        with new_folder(target) as folder:
            _copy(attempted, files, f"{place}/{MANIFEST}", folder / MANIFEST)
            if not sha256_file(folder / MANIFEST).startswith(found.manifest_sha256):
                raise _changed(attempted, "the manifest's sha256 is not the one that the store noted")
            for file in sorted(read_manifest(folder).files):
                if not is_inside(file):
                    raise _changed(attempted, f"the manifest lists {file!r}, which leaves the bundle's folder")
                _copy(attempted, files, f"{place}/{file}", folder / file)
            open_bundle(folder)
    return Bundle(target, read_manifest(target))


@contextmanager
def _store(attempted: str, store: str) -> Iterator[tuple[Any, str]]:
    """The store's file system and root path; its errors become ours."""
    try:
        files, root = fsspec.core.url_to_fs(store)
    except ImportError as error:
        raise MissingDependencyError(
            attempted, found=str(error), remedy="Install the package that it names into this environment."
        ) from error
    except ValueError as error:
        raise RequestError(
            attempted,
            found=str(error),
            remedy="Give a folder or a URL that fsspec knows, for example s3://bucket/manta.",
        ) from error
    try:
        yield files, root.rstrip("/")
    except OSError as error:
        raise ResourceError(
            attempted,
            found=f"{type(error).__name__}: {error}",
            remedy="Check that the store is reachable and writable from this host.",
        ) from error


def _latest(attempted: str, files: Any, root: str, name: str) -> Published:
    try:
        latest = json.loads(files.cat_file(f"{root}/{name}/{LATEST}"))
        return Published(root, name, str(latest["version"]), str(latest["manifest_sha256"]))
    except FileNotFoundError:
        raise RequestError(
            attempted,
            found="the store has no bundle of that name",
            remedy="See 'manta status' for the run, and publish it with 'manta publish RUN --store …'.",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(attempted, found=f"{LATEST} is damaged: {error!r}", remedy="Publish it again.") from None


def _copy(attempted: str, files: Any, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.get_file(source, str(target))
    except FileNotFoundError:
        raise _changed(attempted, f"{source} is not there") from None


def _changed(attempted: str, found: str) -> BundleError:
    return BundleError(
        attempted,
        found=found,
        rule="a bundle is taken whole, with the hashes that its manifest lists",
        remedy="Publish it again with 'manta publish RUN --store …'.",
    )


def _replace(files: Any, path: str, data: bytes) -> None:
    """Write a small file so that readers see the old content or the new."""
    if _is_local(files):
        partial = f"{path}.partial"
        files.pipe_file(partial, data)
        files.mv(partial, path)
    else:
        files.pipe_file(path, data)  # object stores put an object whole or not at all


def _is_local(files: Any) -> bool:
    return "file" in (files.protocol if isinstance(files.protocol, tuple | list) else (files.protocol,))
