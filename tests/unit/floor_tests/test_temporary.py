"""Scratch folders end with their process; what killed ones left goes at the next start, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.errors import RequestError
from cluster.temporary import SHARED_VARIABLE, inherited_locks, remove_abandoned, scratch_folder, shared_folder

HOLDER = """
import sys, time
from cluster.temporary import scratch_folder
with scratch_folder("held", sys.argv[1]) as folder:
    (folder / "content").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def start(stack: ExitStack, code: str, *words: str, locks: tuple[int, ...] = ()) -> tuple[subprocess.Popen[str], str]:
    """A process and the first line it prints."""
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, pass_fds=locks)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process, process.stdout.readline().strip()


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path: Path, stack: ExitStack) -> None:
    killed, left = start(stack, HOLDER, str(tmp_path))
    _, used = start(stack, HOLDER, str(tmp_path))
    killed.kill()
    killed.wait()
    (tmp_path / "manta-other-tool").mkdir()  # no lock: who made it is unknown
    (tmp_path / "manta-link").symlink_to(used)
    with scratch_folder("new", str(tmp_path)) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not Path(left).exists()
        assert Path(used, "content").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["manta-other-tool", "manta-link", Path(used).name]
    )


def test_a_child_keeps_the_folders_whose_locks_it_inherits(tmp_path: Path, stack: ExitStack) -> None:
    (tmp_path / "plain").mkdir()
    owner, name = start(stack, HOLDER, str(tmp_path))
    with inherited_locks([Path(name), tmp_path / "plain"]) as locks:
        assert len(locks) == 1
        child, _ = start(stack, "import time; print('up', flush=True); time.sleep(60)", locks=tuple(locks))
    owner.kill()
    owner.wait()
    assert remove_abandoned(str(tmp_path)) == []
    child.kill()
    child.wait()
    assert remove_abandoned(str(tmp_path)) == [Path(name)]
    assert not Path(name).exists()


def test_a_shared_folder_is_one_for_all_processes_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/private/t")  # a private Ray's own, which ends with it
    monkeypatch.setenv(SHARED_VARIABLE, f"{tmp_path}:/private/t")
    folder = shared_folder("cache")
    assert folder == tmp_path / f"manta-cache-{os.getuid()}"
    assert remove_abandoned(str(tmp_path)) == []
    folder.chmod(0o755)
    with pytest.raises(RequestError, match="this user's alone"):
        shared_folder("cache")
