"""A private Ray that does not come up is tried once more, then told in one sentence; nothing of it stays."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import ResourceError
from cluster.runtime.private import start
from cluster.runtime.session import ray_session


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Ray's init and shutdown, recorded with the thread that called; the first `failures` inits fail."""
    seen: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(start, "TEMPORARY_FOLDER_CHARACTERS_MAX", 10_000)

    def init(**arguments: Any) -> None:
        seen.append(f"init in {threading.current_thread().name}")
        if len([call for call in seen if call.startswith("init")]) <= int(os.environ["FAILURES"]):
            raise RuntimeError("The current node timed out during startup.\nmore")

    monkeypatch.setattr(start.ray, "init", init)
    monkeypatch.setattr(start.ray, "shutdown", lambda: seen.append("shutdown"))
    monkeypatch.setattr(start.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    return seen


def test_a_first_failure_is_tried_again(calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAILURES", "1")
    with ray_session() as opened:
        assert opened.private
        assert calls == ["init in ray", "shutdown", "init in ray"]
        assert any(path.name.startswith("manta-") for path in tmp_path.iterdir())
    assert calls[-1] == "shutdown"
    assert not list(tmp_path.glob("manta-*"))


def test_a_second_failure_is_one_sentence(calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAILURES", "2")
    before = dict(os.environ)
    with pytest.raises(ResourceError, match="RuntimeError: The current node timed out during startup") as caught:
        ray_session().__enter__()
    assert "more" not in caught.value.found
    assert calls.count("shutdown") == 2
    assert not list(tmp_path.glob("manta-*"))
    assert dict(os.environ) == before
