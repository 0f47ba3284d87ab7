"""Write, open and verify bundles.

Invariant: `write_bundle` replaces a bundle as a whole or not at all; `open_bundle` returns only a bundle whose
every file has the size and sha256 of the manifest, and whose paths stay inside its folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pydantic import ValidationError

from cluster.atomic import new_folder, sha256_file
from cluster.bundle.manifest import FORMAT_VERSION, MANIFEST, BundleManifest, FileRecord, Variant
from cluster.errors import BundleError

SAMPLE = "sample.npz"
TRANSFORMS = "transforms.json"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on local disk."""

    folder: Path
    manifest: BundleManifest

    def path(self, name: str) -> Path:
        """Path of a listed file. Raises BundleError for a name that the manifest does not list."""
        if name not in self.manifest.files:
            raise BundleError(
                f"Cannot read {name} of bundle '{self.manifest.name}'",
                found="the manifest does not list it",
                rule="a bundle's files are those of its manifest",
                remedy=f"It has {', '.join(sorted(self.manifest.files))}.",
            )
        return self.folder / name

    def variant(self, name: str | None = None) -> Variant:
        """The named or default variant. Raises BundleError for an unknown name."""
        try:
            return self.manifest.variant(name)
        except KeyError:
            have = ", ".join(variant.name for variant in self.manifest.variants)
            raise BundleError(
                f"Cannot use variant {name!r} of bundle '{self.manifest.name}'",
                found="there is no such variant",
                remedy=f"It has {have}.",
            ) from None

    def sample(self) -> dict[str, np.ndarray]:
        """Arrays of sample.npz: `inputs/<name>` and `outputs/<variant>/<name>`, a few real rows each."""
        with np.load(self.path(SAMPLE), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def transforms(self) -> dict[str, Any] | None:
        """The fitted transforms as data, or None for a model that takes tensors only."""
        if TRANSFORMS not in self.manifest.files:
            return None
        return json.loads(self.path(TRANSFORMS).read_text(encoding="utf-8"))


@contextmanager
def write_bundle(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; call `finish_bundle` in it last. On success it takes the place of `target`.

    Raises DiskFullError with the old bundle whole.
    """
    with new_folder(target) as folder:
        yield folder
        if not (folder / MANIFEST).exists():
            raise BundleError(f"Cannot finish the bundle {target}", found="no manifest was written")


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Size and sha256 of every file under `folder` except the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256=sha256_file(path), size_bytes=path.stat().st_size)
        for path in files
    }


def finish_bundle(folder: Path, manifest: BundleManifest) -> BundleManifest:
    """Write the manifest of a filled folder with its files' hashes, and return it as written."""
    complete = manifest.model_copy(update={"files": file_records(folder)})
    (folder / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return complete


def bundle_in(path: Path) -> Path:
    """The bundle of the run at `path`, else `path` itself: commands take either."""
    inside = path / "bundle"
    return inside if not (path / MANIFEST).exists() and inside.is_dir() else path


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle and verify every byte of it. Raises BundleError."""
    manifest = read_manifest(folder)
    problems = verify_files(folder, manifest)
    if problems:
        raise _changed(folder, manifest, problems)
    return Bundle(folder, manifest)


def _changed(folder: Path, manifest: BundleManifest, problems: list[str]) -> BundleError:
    return BundleError(
        f"Cannot load bundle '{manifest.name}' at {folder}",
        found="; ".join(problems),
        rule="each file must have the size and sha256 that the manifest lists: the bundle was changed, "
        "or its copy was cut short",
        remedy="Copy it again, or make it again with 'manta run'.",
        details={"problems": problems},
    )


def copy_bundle(source: Path, target: Path, *, manifest_sha256: str) -> None:
    """Copy the listed files of the bundle with this manifest, and verify what was copied.

    Raises BundleError for a source that was changed, also while it was read, and DiskFullError; `target` is as it was.
    """
    manifest = read_manifest(source)
    with new_folder(target) as folder:
        for name in (*manifest.files, MANIFEST):
            if is_inside(name) and (source / name).is_file() and not (source / name).is_symlink():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, folder / name)
        problems = verify_files(folder, read_manifest(folder))
        if sha256_file(folder / MANIFEST) != manifest_sha256:
            problems.append("it was written anew while it was copied")
        if problems:
            raise _changed(source, manifest, problems)


def read_manifest(folder: Path) -> BundleManifest:
    """The manifest alone, without looking at the other files. Raises BundleError."""
    attempted = f"Cannot load the bundle {folder}"
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        found = "there is no such folder" if not folder.exists() else f"it has no {MANIFEST}"
        raise BundleError(
            attempted,
            found=found,
            remedy="Give the folder of a bundle; 'manta runs' lists runs that have one.",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(attempted, found=f"{MANIFEST} is not JSON: {error}", remedy="Copy it again.") from None
    if not isinstance(raw, dict) or raw.get("format") != "manta.bundle":
        raise BundleError(attempted, found=f"{MANIFEST} is not that of a bundle", remedy="Give a bundle's folder.")
    if raw.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            attempted,
            found=f"it has format version {raw.get('format_version')!r}",
            rule=f"this Manta reads version {FORMAT_VERSION}",
            remedy="Use the Manta that wrote it, or make the bundle again.",
        )
    try:
        return BundleManifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(attempted, found=f"{MANIFEST} breaks a rule at {where}: {first['msg']}") from None


def verify_files(folder: Path, manifest: BundleManifest) -> list[str]:
    """Every difference between the manifest and the disk, as sentences without a full stop."""
    problems = []
    for name, record in sorted(manifest.files.items()):
        path = folder / name
        if not is_inside(name):
            problems.append(f"the manifest lists {name!r}, which leaves the bundle's folder")
        elif not path.is_file() or path.is_symlink():
            problems.append(f"the manifest lists {name}, which is not there")
        elif (size := path.stat().st_size) != record.size_bytes:
            problems.append(f"the manifest lists {name} with {record.size_bytes} bytes, the file has {size}")
        elif (digest := sha256_file(path)) != record.sha256:
            problems.append(
                f"the manifest lists {name} with sha256 {record.sha256[:8]}…, the file on disk hashes to {digest[:8]}…"
            )
    for variant in manifest.variants:
        if variant.file not in manifest.files:
            problems.append(f"variant {variant.name!r} names {variant.file}, which the manifest does not list")
    if manifest.default_variant not in {variant.name for variant in manifest.variants}:
        problems.append(f"the default variant {manifest.default_variant!r} is not among the variants")
    return problems


def is_inside(name: str) -> bool:
    """Whether a listed name stays inside the bundle's folder."""
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts and "\\" not in name
