"""The target is either the old content or the new one, never a mix."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.atomic import digest_json, hash_tree, new_folder, write_bytes, write_json
from cluster.bundle import open_bundle
from cluster.errors import DiskFullError
from tests.unit.floor_tests.test_bundle import make_bundle


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_disk_full_leaves_the_old_file_whole(small_disk: Path) -> None:
    target = small_disk / "a.bin"
    write_bytes(target, b"old")
    with pytest.raises(DiskFullError, match="full") as caught:
        write_bytes(target, b"x" * (2 << 20))
    assert caught.value.exit_code == 3
    assert target.read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["a.bin"]


def test_disk_full_leaves_the_old_folder_whole(small_disk: Path) -> None:
    target = small_disk / "bundle"
    with new_folder(target) as folder:
        (folder / "a").write_bytes(b"old")
    with pytest.raises(DiskFullError), new_folder(target) as folder:
        (folder / "a").write_bytes(b"x" * (2 << 20))
    assert hash_tree(target) == {"a": "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"}
    assert [path.name for path in small_disk.iterdir()] == ["bundle"]


def test_disk_full_while_writing_a_bundle_leaves_the_old_bundle_whole(small_disk: Path) -> None:
    folder = make_bundle(small_disk / "bundle", b"old")
    with pytest.raises(DiskFullError, match="full"):
        make_bundle(folder, b"x" * (2 << 20))
    assert open_bundle(folder).path("model.onnx").read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["bundle"]


def test_an_error_inside_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(KeyError), new_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("new")
        raise KeyError
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_kept_partial_is_handed_on(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "a", keep_partial=True) as folder:
        (folder / "x").write_text("half")
        raise KeyError
    with new_folder(tmp_path / "a", keep_partial=True) as folder:
        assert (folder / "x").read_text() == "half"
    assert (tmp_path / "a" / "x").read_text() == "half"


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})
