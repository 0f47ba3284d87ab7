"""Whatever a command raises: one sentence on stderr, one JSON value on stdout with `--json`, the right exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.cli.app import call
from cluster.command import DEBUG_VARIABLE, run_main
from cluster.errors import DataError


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
    def command(_: list[str]) -> int:
        raise error

    assert run_main(command, ["--json"]) == code
    shown = capsys.readouterr()
    assert word in shown.err
    assert "Traceback" not in shown.err
    assert json.loads(shown.out)["error"]["exit_code"] == code


def test_debug_shows_where_a_fault_of_ours_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "")  # so that its value is put back
    assert run_main(lambda _: {}["key"], ["x", "--debug", "y"]) == 1
    assert "KeyError: 'key'" in capsys.readouterr().err


def test_debug_is_taken_out_of_the_arguments_and_holds_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "")
    given: list[str] = []
    assert run_main(lambda arguments: given.extend(arguments) or 0, ["a", "--debug", "--json"]) == 0
    assert (given, os.environ[DEBUG_VARIABLE]) == (["a", "--json"], "1")


ON_STDOUT = """
import sys
from cluster.command import run_main
from cluster.errors import DataError

def command(arguments):
    sys.stdout.write("x" * int(arguments[0]))
    if arguments[1] == "fails":
        raise DataError("Cannot read x", found="it is empty")
    return 0

sys.exit(run_main(command))
"""


@pytest.mark.parametrize("num_characters", [9, 999_999], ids=["met at the end", "met while it writes"])
@pytest.mark.parametrize("ends", ["well", "fails"])
@pytest.mark.parametrize(
    ("where", "code", "said"),
    [("", 1, ""), (">/dev/full", 3, "Cannot write: no space left on device"), (">&-", 0, "")],
    ids=["closed pipe", "full disk", "not open"],
)
def test_a_stdout_that_nobody_reads_is_no_fault(
    where: str, code: int, said: str, ends: str, num_characters: int
) -> None:
    """As `manta … | head -1`, `manta … > /dev/full` and `manta … >&-`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = ["sh", "-c", f'exec "$0" -c "$@" {where}', sys.executable, ON_STDOUT, str(num_characters), ends]
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            command,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONUNBUFFERED": ""},
        )
    if ends == "fails" and (num_characters == 9 or where == ">&-"):  # it comes to its error before stdout's is met
        code, said = 2, "it is empty"
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == bool(said)


def test_a_wrong_command_line_is_a_json_value_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "--nope", "--json"]) == 2
    assert "--nope" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_version_names_manta_and_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"manta {version('manta-ml')} (Python {platform.python_version()}, ")
    assert f"ray {version('ray')}" in line
    assert f"torch {version('torch')}" in line


def test_a_terminal_without_a_character_shows_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run_main(lambda _: 0 * sys.stdout.write("76 kB → 20 kB\n"), []) == 0
    assert raw.getvalue() == b"76 kB ? 20 kB\n"


def test_a_runs_folder_that_is_a_file_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("")
    (tmp_path / "s.yaml").write_text("version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n")
    assert call(["run", str(tmp_path / "s.yaml"), "--runs-dir", str(tmp_path / "runs" / "deep")]) == 2
    assert "runs" in capsys.readouterr().err
