"""Every main ends alike: `manta`, what it starts (COMMAND_MODULES), and what a person starts by `python -m`."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperCommand

import cluster.cli
from cluster.command import DEBUG_VARIABLE
from cluster.entrypoints import COMMAND_MODULES
from cluster.store.locks import hold_lock
from cluster.store.run_folder import RunFolder

WITH_JSON = {
    "manta": ["check", "none.yaml"],
    "trainers.explain": ["none.yaml"],
    "trainers.data.check": ["none.csv"],
    "trainers.diagnose": ["none"],
    "trainers.compress": ["none"],
    "serve.deployments": ["rollback", "nobody"],
}
"""Module -> a wrong request; of these commands `--json` prints one value."""
WITHOUT_JSON = {
    "cluster.pipeline": ["locked"],
    "cluster.runtime.node": ["no-such-program"],
    "trainers.loop": ["none"],
    "trainers.tensorboard": ["broken"],
    "trainers.trackers": ["none"],
    "serve": ["none", "--port", "0"],
    "serve.adopt": ["none.onnx", "."],
    "serve.footprint": ["none", "--device", "cpu"],
}
WRONG = WITH_JSON | WITHOUT_JSON


def test_every_command_of_the_table_is_here() -> None:
    assert set(COMMAND_MODULES.values()) <= set(WRONG)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run that another process works on and one whose events cannot be read; the process as it was."""
    root, signals = logging.getLogger(), (signal.SIGINT, signal.SIGTERM)
    before = (root.handlers[:], root.level, [signal.getsignal(number) for number in signals])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv(DEBUG_VARIABLE, "")  # so that its value is put back
    (tmp_path / "broken" / "events.jsonl").mkdir(parents=True)
    (tmp_path / "locked").mkdir()
    with hold_lock(RunFolder(tmp_path / "locked").lock):
        yield tmp_path
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    for number, handler in zip(signals, before[2], strict=True):
        signal.signal(number, handler)


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls a main with arguments and returns its exit code."""

    def called(name: str, arguments: list[str]) -> int:
        if name == "manta":
            monkeypatch.setattr(sys, "argv", ["manta", *arguments])
            with pytest.raises(SystemExit) as ended:
                cluster.cli.main()
            return int(ended.value.code or 0)
        spec = importlib.util.find_spec(name)
        is_package = spec is not None and spec.submodule_search_locations is not None
        return int(importlib.import_module(f"{name}.__main__" if is_package else name).main(arguments))

    return called


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_sentence_and_with_debug_a_traceback(
    name: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(name, WRONG[name]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err[:7], shown.err.count("\n")) == ("", "Error: ", 1)
    assert call(name, [*WRONG[name], "--debug"]) == 2
    shown = capsys.readouterr()
    if name == "cluster.runtime.node":  # every word after the program's is the program's
        assert shown.err.startswith("Error: ")
        return
    assert shown.err.startswith("Traceback")
    assert "\nError: " in shown.err


@pytest.mark.parametrize("name", WITH_JSON)
def test_with_json_it_is_one_value_and_nothing_where_stdout_is_closed(
    name: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(name, [*WRONG[name], "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert call(name, [*WRONG[name], "--json"]) == 2
    shown = capsys.readouterr().err
    assert (shown[:7], shown.count("\n")) == ("Error: ", 1)


@pytest.mark.parametrize("name", sorted(set(WRONG) - {"manta", "cluster.runtime.node"}))
def test_ctrl_c_is_one_word(
    name: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", interrupted)
    monkeypatch.setattr(TyperCommand, "parse_args", interrupted)
    assert call(name, WRONG[name]) == 1
    assert capsys.readouterr() == ("", "Stopped.\n")
