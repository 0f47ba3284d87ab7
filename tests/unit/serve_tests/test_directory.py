"""Records of this host's endpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.errors import RequestError
from serve.deployments import directory


def test_a_record_lives_as_long_as_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.temporary.shared_base", lambda: tmp_path)
    directory.remember("m", "http://x", "10.0.0.1:1")
    (found,) = directory.records()
    assert (found.name, found.pid) == ("m", os.getpid())
    path = directory.folder() / "m.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "started_unix_s": 1.0}))  # another process with the same id
    assert directory.records() == []
    assert not path.exists()
    directory.folder().chmod(0o755)
    with pytest.raises(RequestError, match="tokens"):
        directory.records()
