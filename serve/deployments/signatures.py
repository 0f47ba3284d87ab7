"""Whether a new version answers the requests that the serving one answers: by their manifests, before anything starts.

Compared are the tensors of the protocol (names, datatypes, shapes) and, for tables, the columns of raw rows. Not
compared: what the answers mean (classes, units).
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.bundle import TensorSpec, read_manifest
from cluster.bundle.files import TRANSFORMS
from cluster.errors import MantaError, RequestError
from serve.config import EndpointConfig, VersionConfig


def check_signature(before: EndpointConfig, wanted: EndpointConfig) -> None:
    """Raise RequestError, with both signatures, where the serving version's clients would be refused by the new one."""
    if before.default.manifest_sha256 == wanted.subject.manifest_sha256 or not _is_readable(before.default):
        return
    differences = [
        f"{what} {old}, version {wanted.subject.version} has {new}"
        for (what, old), (_, new) in zip(_parts(before.default), _parts(wanted.subject), strict=True)
        if old != new
    ]
    if differences:
        raise RequestError(
            f"Cannot deploy '{wanted.name}'",
            found=f"version {before.default_version} has {'; '.join(differences)}",
            rule="a new version takes and gives what the serving one does, or its clients are refused",
            remedy="Deploy it under another --name, or with --force where the clients are ready for it.",
        )


def _parts(version: VersionConfig) -> list[tuple[str, str]]:
    """Inputs, outputs and columns in words."""
    signature = read_manifest(version.folder).signature
    columns = ", ".join(_columns(version.folder)) or "none"
    return [
        ("inputs", _tensors(signature.inputs)),
        ("outputs", _tensors(signature.outputs)),
        ("columns", columns),
    ]


def _tensors(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{each.name} {each.datatype} {list(each.shape)}" for each in sorted(tensors, key=_name))


def _name(tensor: TensorSpec) -> str:
    return tensor.name


def _columns(folder: Path) -> list[str]:
    """Of raw rows; none where rows are images or arrays."""
    path = folder / TRANSFORMS
    raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return sorted(str(column["name"]) for column in raw.get("columns", ()))


def _is_readable(version: VersionConfig) -> bool:
    """An older version's folder may be gone: then there is nothing to compare with."""
    try:
        read_manifest(version.folder)
    except MantaError:
        return False
    return True
