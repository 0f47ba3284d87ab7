"""A published bundle comes back with every byte right, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from cluster.bundle import (
    BundleManifest,
    TensorSignature,
    TensorSpec,
    Variant,
    finish_bundle,
    open_bundle,
    write_bundle,
)
from cluster.errors import BundleError, RequestError, ResourceError
from cluster.store.remote import LATEST, fetch_bundle, publish_bundle


def make_bundle(folder: Path, content: bytes = b"model") -> Path:
    signature = TensorSignature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    )
    with write_bundle(folder) as partial:
        (partial / "evidence").mkdir()
        (partial / "model.onnx").write_bytes(content)
        (partial / "evidence" / "gate.json").write_text("{}", encoding="utf-8")
        manifest = BundleManifest(
            name="digits",
            created_unix_s=1.0,
            task="regression",
            signature=signature,
            variants=(Variant(name="fp32", file="model.onnx", precision="fp32"),),
            default_variant="fp32",
            model={},
            files={},
        )
        finish_bundle(partial, manifest)
    return folder


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else f"memory://{tmp_path.name}"


def test_what_is_published_is_fetched_whole(tmp_path: Path, store: str) -> None:
    folder = make_bundle(tmp_path / "bundle")
    published = publish_bundle(folder, store, "run-1")
    bundle = fetch_bundle(store, "run-1", tmp_path / "got")
    assert open_bundle(bundle.folder).manifest == open_bundle(folder).manifest
    assert publish_bundle(folder, store, "run-1") == published


def test_an_older_version_stays_available(tmp_path: Path, store: str) -> None:
    first = publish_bundle(make_bundle(tmp_path / "one", b"one"), store, "run-1")
    publish_bundle(make_bundle(tmp_path / "two", b"two"), store, "run-1")
    assert (fetch_bundle(store, "run-1", tmp_path / "got").folder / "model.onnx").read_bytes() == b"two"
    old = fetch_bundle(store, "run-1", tmp_path / "old", version=first.version)
    assert (old.folder / "model.onnx").read_bytes() == b"one"


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "latest"])
def test_a_damaged_store_is_refused_and_the_old_copy_stays(tmp_path: Path, store: str, damage: str) -> None:
    published = publish_bundle(make_bundle(tmp_path / "bundle"), store, "run-1")
    make_bundle(tmp_path / "got", b"old")
    files, root = fsspec.core.url_to_fs(store)
    place = f"{root}/run-1/{published.version}"
    if damage == "flip":
        files.pipe_file(f"{place}/model.onnx", b"modeL")
    elif damage == "cut":
        files.pipe_file(f"{place}/model.onnx", b"mod")
    elif damage == "remove":
        files.rm_file(f"{place}/evidence/gate.json")
    elif damage == "manifest":
        files.pipe_file(f"{place}/manifest.json", files.cat_file(f"{place}/manifest.json") + b" ")
    else:
        files.pipe_file(f"{root}/run-1/{LATEST}", b"{")
    with pytest.raises(BundleError):
        fetch_bundle(store, "run-1", tmp_path / "got")
    assert (tmp_path / "got" / "model.onnx").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.partial"))


def test_a_manifest_that_leaves_its_folder_writes_nothing_outside(tmp_path: Path) -> None:
    store = tmp_path / "store"
    published = publish_bundle(make_bundle(tmp_path / "bundle"), str(store), "run-1")
    manifest = store / "run-1" / published.version / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["files"]["../../evil"] = raw["files"]["model.onnx"]
    manifest.write_text(json.dumps(raw))
    (store / "run-1" / "evil").write_text("evil")
    from cluster.atomic import sha256_file

    digest = sha256_file(manifest)
    (store / "run-1" / LATEST).write_text(json.dumps({"version": published.version, "manifest_sha256": digest}))
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        fetch_bundle(str(store), "run-1", tmp_path / "a" / "b" / "got")
    assert not (tmp_path / "a" / "evil").exists()


def test_a_changed_bundle_is_not_published(tmp_path: Path, store: str) -> None:
    folder = make_bundle(tmp_path / "bundle")
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError):
        publish_bundle(folder, store, "run-1")
    with pytest.raises(RequestError, match="no bundle of that name"):
        fetch_bundle(store, "run-1", tmp_path / "got")


def test_unknown_names_and_places_are_one_sentence(tmp_path: Path, store: str) -> None:
    with pytest.raises(RequestError, match="no bundle of that name"):
        fetch_bundle(store, "nobody", tmp_path / "got")
    with pytest.raises(RequestError, match="Protocol not known"):
        fetch_bundle("nosuch://x", "run-1", tmp_path / "got")


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResourceError, match="Cannot publish"):
        publish_bundle(make_bundle(tmp_path / "bundle"), str(tmp_path / "file"), "run-1")
