"""A bundle is written whole or not at all, and a changed byte is found before anything is loaded."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.bundle import BundleManifest, TensorSignature, TensorSpec, Variant, open_bundle, read_manifest
from cluster.bundle.files import finish_bundle, write_bundle
from cluster.errors import BundleError, DataError


def make_manifest(**changes: object) -> BundleManifest:
    values: dict[str, object] = {
        "name": "digits",
        "created_unix_s": time.time(),
        "task": "classification",
        "classes": ("a", "b"),
        "signature": TensorSignature(
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
            outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 2)),),
        ),
        "variants": (Variant(name="fp32", file="model.onnx", precision="fp32"),),
        "default_variant": "fp32",
        "model": {"family": "mlp"},
        "files": {},
    }
    return BundleManifest(**{**values, **changes})  # type: ignore[arg-type]


def make_bundle(folder: Path, content: bytes = b"graph") -> Path:
    with write_bundle(folder) as inside:
        (inside / "model.onnx").write_bytes(content)
        np.savez(inside / "sample.npz", **{"inputs/x": np.zeros((2, 4), np.float32)})
        finish_bundle(inside, make_manifest())
    return folder


def test_a_bundle_opens_as_it_was_written(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "b"))
    assert bundle.path("model.onnx").read_bytes() == b"graph"
    assert bundle.sample()["inputs/x"].shape == (2, 4)
    assert bundle.variant().name == "fp32"
    assert bundle.transforms() is None


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    path = folder / "model.onnx"
    for index in range(len(b"graph")):
        data = bytearray(b"graph")
        data[index] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(BundleError, match="sha256"):
            open_bundle(folder)


@pytest.mark.parametrize("damage", ["missing", "short", "symlink"])
def test_other_damage_is_named(tmp_path: Path, damage: str) -> None:
    folder = make_bundle(tmp_path / "b")
    path = folder / "model.onnx"
    path.unlink()
    if damage == "short":
        path.write_bytes(b"gra")
    if damage == "symlink":
        (tmp_path / "elsewhere").write_bytes(b"graph")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"model\.onnx") as caught:
        open_bundle(folder)
    assert caught.value.exit_code == 2


def test_paths_cannot_leave_the_bundle(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    (tmp_path / "secret").write_bytes(b"x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"sha256": "0" * 64, "size_bytes": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(folder)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format_version"] = 99
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="version 99"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "other"}', '{"format": "manta.bundle", "format_version": 1}']
)
def test_a_manifest_that_is_none_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        read_manifest(tmp_path)


def test_a_missing_bundle_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        open_bundle(tmp_path / "none")


def test_a_failed_write_leaves_the_old_bundle(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", b"old")
    with pytest.raises(BundleError, match="no manifest"), write_bundle(folder) as inside:
        (inside / "model.onnx").write_bytes(b"new")
    assert open_bundle(folder).path("model.onnx").read_bytes() == b"old"


def test_signature_names_every_unfit_input() -> None:
    signature = make_manifest().signature
    with pytest.raises(DataError, match=r"'x' has shape \[2, 3\].*"):
        signature.check_inputs({"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(DataError, match="'y' is unknown; input 'x' is missing"):
        signature.check_inputs({"y": np.zeros((2, 4), np.float32)})
    with pytest.raises(DataError, match="datatype FP64"):
        signature.check_inputs({"x": np.zeros((2, 4))})
    signature.check_inputs({"x": np.zeros((5, 4), np.float32)})
