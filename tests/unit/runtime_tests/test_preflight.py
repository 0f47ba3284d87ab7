"""A working folder that is gone is said before torch is loaded, which it would end without a word of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.errors import ResourceError
from cluster.runtime.preflight import check_working_folder


def test_a_working_folder_that_was_replaced_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "working_dir_files" / "package"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    check_working_folder()
    shutil.rmtree(folder)
    folder.mkdir()  # as Ray does: the same path, another folder
    with pytest.raises(ResourceError, match=f"the working folder was removed: {folder}") as found:
        check_working_folder()
    assert "Give each node a Ray folder of its own" in found.value.message
    monkeypatch.chdir(folder)
    check_working_folder()
