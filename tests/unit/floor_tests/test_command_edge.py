"""Whatever a command raises: one sentence on stderr, one JSON value on stdout with `--json`, the right exit code."""

from __future__ import annotations

import errno
import io
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.cli.app import app
from cluster.cli.seam import call
from cluster.errors import DataError
from cluster.telemetry.edge import DEBUG_VARIABLE, forgive_characters, run_command


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (DataError("Cannot read x", found="it is empty"), 2, "it is empty"),
        (OSError(errno.EACCES, "Permission denied", "/x/spec.yaml"), 3, "/x/spec.yaml"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 3, "read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 3, "Free some space"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), 2, "/x/y"),
        (KeyError("lost"), 1, "fault of Manta"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 1, "fault of Manta"),
    ],
)
def test_every_error_is_a_sentence_and_a_json_value(
    error: Exception, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    assert run_command(command, as_json=True) == code
    shown = capsys.readouterr()
    assert word in shown.err
    assert "Traceback" not in shown.err
    assert json.loads(shown.out)["error"]["exit_code"] == code


def test_debug_shows_where_a_fault_of_ours_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    assert run_command(lambda: {}["key"]) == 1
    assert "KeyError: 'key'" in capsys.readouterr().err


def test_a_wrong_command_line_is_a_json_value_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(app, ["run", "--nope", "--json"]) == 2
    assert "--nope" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_version_names_manta_and_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(app, ["--version"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"manta {version('manta-ml')} (Python {platform.python_version()}, ")
    assert f"ray {version('ray')}" in line
    assert f"torch {version('torch')}" in line


def test_a_terminal_without_a_character_shows_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    forgive_characters()
    sys.stdout.write("76 kB → 20 kB\n")
    sys.stdout.flush()
    assert raw.getvalue() == b"76 kB ? 20 kB\n"


def test_a_runs_folder_that_is_a_file_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("")
    (tmp_path / "s.yaml").write_text("version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n")
    assert call(app, ["run", str(tmp_path / "s.yaml"), "--runs-dir", str(tmp_path / "runs" / "deep")]) == 2
    assert "runs" in capsys.readouterr().err
