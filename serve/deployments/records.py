"""Where an endpoint's `Rollout` and its bundles lie, outside of Ray and of the client: files that outlive both.

```
FOLDER/NAME/00000007.json   the endpoint's seventh revision; the highest number is the truth
FOLDER/_bundles/SHA256/     a deployed bundle, by the hash of its manifest, which lists the hashes of all its files
```

FOLDER is `.endpoints/HOST-PORT` in the cluster's runs folder (MANTA_RUNS_DIR of its nodes, else ~/manta-runs): what
nodes share, and what is backed up, is there already. HOST-PORT is the head's address: a head that starts again finds
what it served. KubeRay gives its heads new addresses; there it is the name of the RayCluster. A private Ray's
endpoints end with it, and so does their folder, in its temporary one. The cluster's store remembers the folder, so
that every client of one Ray uses the same.

Invariant: a revision is written by one client and never again: `link` fails where the number is taken, on network file
systems too. So a change is made to the revision that it was decided for, or not at all.
"""

from __future__ import annotations

import errno
import getpass
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ray
from pydantic import ValidationError

from cluster.atomic import sha256_file, sync_folder, write_text
from cluster.bundle.files import copy_bundle
from cluster.bundle.manifest import MANIFEST
from cluster.errors import BundleError, ClusterUnreachableError, EndpointError
from cluster.runtime.ray_private import store_get, store_put
from cluster.temporary import SHARED_VARIABLE
from serve.config import EndpointConfig, VersionConfig
from serve.rollout import By, Rollout

NAMESPACE, KEY = b"manta-endpoints", b"folder"
BUNDLES = "_bundles"  # no endpoint has such a name
REVISIONS_KEPT = 20
TRIES = 100  # of a change that others overtake
UNUSED_S = 3600.0  # longer than any deploy: a copy that no endpoint names yet, a revision that is being followed
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
PAUSE_S, PAUSE_MAX_S = 0.01, 1.0  # about a minute in all
FOLDER_TIMEOUT_S = 30.0


class RolloutRecords:
    """The records under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def others(self) -> list[str]:
        """Names of the folders beside this one that record endpoints: of other clusters, or of another address."""
        found = {path.parent.parent.name for path in self.folder.parent.glob("*/*/*.json")}
        return sorted(found - {self.folder.name})

    def names(self) -> list[str]:
        """Endpoints that are recorded here, those that were taken away too."""
        return sorted({path.parent.name for path in self.folder.glob("*/*.json")})

    def read(self, name: str) -> Rollout:
        """The newest revision; an empty one for an unknown name. Raises EndpointError."""
        for attempt in range(TRIES):
            _pause(attempt)
            newest = max((self.folder / name).glob("*.json"), default=None)
            if newest is None:
                return Rollout(name=name)
            with suppress(FileNotFoundError):  # an old one by now
                return _parsed(newest)
        raise _busy(name)

    def change(self, name: str, transition: Callable[[Rollout], Rollout]) -> tuple[Rollout, Rollout]:
        """Apply a transition to the newest revision; returns the revision before and after it.

        The transition is called again where another client was faster; what it raises leaves everything as it was.
        """
        for attempt in range(TRIES):
            _pause(attempt)
            before = self.read(name)
            after = transition(before)
            if after == before:
                return before, before
            if self._write(after):
                self._forget_old(after)
                return before, after
        raise _busy(name)

    def keep(self, version: VersionConfig) -> VersionConfig:
        """The version with a copy of its bundle that is its own. Raises BundleError, DiskFullError."""
        if version.kept is not None and (Path(version.kept) / MANIFEST).is_file():
            return version
        digest = version.manifest_sha256 or sha256_file(version.folder / MANIFEST)
        own = self.folder / BUNDLES / digest
        if own.is_dir():
            os.utime(own)  # an old one that is used again
        else:
            draft = own.with_name(f".{_unique()}")
            copy_bundle(version.folder, draft, manifest_sha256=digest)
            try:
                draft.rename(own)
            except OSError:  # another client has copied the same bundle
                shutil.rmtree(draft, ignore_errors=True)
        return version.model_copy(update={"kept": str(own), "manifest_sha256": digest})

    def keep_all(self, config: EndpointConfig) -> EndpointConfig:
        """The configuration with a copy of each bundle: of those that are not loaded where the folder still has it."""
        needed = {each.version for each in config.loaded}
        versions = []
        for each in config.versions:
            try:
                versions.append(self.keep(each))
            except (BundleError, FileNotFoundError):
                if each.version in needed:
                    raise
                versions.append(each)
        return config.model_copy(update={"versions": tuple(versions)})

    def remove_unused_bundles(self) -> None:
        """Remove copies that no endpoint has among its versions."""
        configs = [config for name in self.names() if (config := self.read(name).config) is not None]
        used = {version.kept for config in configs for version in config.versions}
        for path in (self.folder / BUNDLES).glob("*"):
            with suppress(FileNotFoundError):
                if str(path) not in used and time.time() - path.stat().st_mtime > UNUSED_S:
                    shutil.rmtree(path, ignore_errors=True)

    def _path(self, name: str, revision: int) -> Path:
        return self.folder / name / f"{revision:08d}.json"

    def _write(self, rollout: Rollout) -> bool:
        """Whether the revision's number was free."""
        target = self._path(rollout.name, rollout.revision)
        draft = target.with_name(f".{_unique()}")
        write_text(draft, rollout.model_dump_json(indent=1) + "\n")
        try:
            os.link(draft, target)
            sync_folder(target.parent)
        except FileExistsError:
            return draft.stat().st_nlink == 2  # a network file system's answer may be lost after the link was made
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise EndpointError(
                f"Cannot record a change of '{rollout.name}'",
                found=f"the file system of {self.folder} has no hard links",
                rule="a link is what only one of two commands at once can make",
                remedy="Set MANTA_RUNS_DIR of the cluster's nodes to a folder on another file system.",
            ) from None
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _forget_old(self, rollout: Rollout) -> None:
        """A number is free again then: only after a time in which no client can still hold it for the next one."""
        for path in sorted((self.folder / rollout.name).glob("*.json"))[:-REVISIONS_KEPT]:
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > UNUSED_S:
                    path.unlink()


def open_records() -> RolloutRecords:
    """The records of this session's Ray. Blocks; the first time on a Ray it starts a task on one of its nodes."""
    known = store_get(KEY, namespace=NAMESPACE)
    if known is not None:
        return RolloutRecords(Path(known.decode()))
    folder = _private_folder() or _folder_of_cluster()
    store_put(KEY, str(folder).encode(), namespace=NAMESPACE)
    return RolloutRecords(folder)


def by(reason: str = "") -> By:
    """This user on this host, now."""
    return By(author=f"{_user()}@{socket.gethostname()}", unix_s=time.time(), reason=reason)


def _private_folder() -> Path | None:
    """Of a private Ray that this process has started."""
    temporary = tempfile.gettempdir() if not os.environ.get("TMPDIR") else os.environ["TMPDIR"]
    is_private = os.environ.get(SHARED_VARIABLE, "").endswith(f"{os.pathsep}{temporary}")
    return Path(temporary) / "endpoints" if is_private else None


def _folder_of_cluster() -> Path:
    """Raises ClusterUnreachableError."""
    address = ray.get_runtime_context().gcs_address.replace(":", "-")
    reference = ray.remote(num_cpus=0, max_retries=0)(_runs_folder_and_name).remote()
    try:
        runs, name = ray.get(reference, timeout=FOLDER_TIMEOUT_S)
        return Path(runs) / ".endpoints" / (name or address)
    except ray.exceptions.RayError as error:
        raise ClusterUnreachableError(
            "Cannot find where the cluster keeps its endpoints", found=f"no node answered: {type(error).__name__}"
        ) from None


def _runs_folder_and_name() -> tuple[str, str]:
    """Called on a node, whose variables are the cluster's; KubeRay sets the name."""
    return os.environ.get("MANTA_RUNS_DIR") or str(Path.home() / "manta-runs"), os.environ.get("RAY_CLUSTER_NAME", "")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _unique() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"


def _parsed(path: Path) -> Rollout:
    try:
        return Rollout.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise EndpointError(
            f"Cannot read what is recorded of endpoint '{path.parent.name}'",
            found=f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            rule="records are written by Manta alone, each revision once",
            remedy="Remove this file: the revision before it counts then.",
        ) from None


def _pause(attempt: int) -> None:
    """Before another attempt; longer and longer, since a network file system shows others' changes late."""
    time.sleep(min(attempt * PAUSE_S, PAUSE_MAX_S))


def _busy(name: str) -> EndpointError:
    return EndpointError(f"Cannot change '{name}'", found=f"others changed it {TRIES} times meanwhile")
