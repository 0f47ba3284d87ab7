"""`python -m cluster.runtime.node COMMAND …` becomes the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.runtime import node


def test_the_words_of_another_program_are_handed_on_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(node, "shared_folder", lambda name: tmp_path)
    monkeypatch.setattr(os, "execvpe", lambda program, words, environment: became.append(words))
    words = ["echo", "run", "--debug", "--json", "x"]
    node.main(words)
    assert became == [words]
    assert "MANTA_DEBUG" not in os.environ
