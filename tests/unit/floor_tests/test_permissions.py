"""A file that this user may not read is one clear sentence, also where the tests run as root."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import DataError, SpecError
from cluster.spec.load import read_text
from trainers.data.read.files import readable_file


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """The file has no mode bits, and the process is nobody: root reads a file of any mode."""
    path.chmod(0o000)
    root = os.geteuid() == 0
    if root:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o600)


@pytest.fixture
def locked() -> Iterator[Path]:
    """A file in a folder that everybody may enter, so that the file's own mode is what stands in the way."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "locked.yaml"
        path.write_text("version: 1\n")
        yield path


def test_a_data_file_without_the_right_to_read_it_says_so(locked: Path) -> None:
    assert readable_file(locked) == locked
    with without_rights(locked), pytest.raises(DataError, match="permission denied") as caught:
        readable_file(locked)
    assert "chmod u+r" in caught.value.message
    assert caught.value.exit_code == 2


def test_a_spec_without_the_right_to_read_it_says_so(locked: Path) -> None:
    assert read_text(locked) == "version: 1\n"
    with without_rights(locked), pytest.raises(SpecError, match="permission denied") as caught:
        read_text(locked)
    assert str(locked) in caught.value.message
    assert caught.value.exit_code == 2
