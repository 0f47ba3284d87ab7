"""Names, rows from files, records of endpoints, the comparison that the predict stage makes, versions of a config."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cluster.bundle import open_bundle
from cluster.errors import RequestError
from serve.config import HISTORY_MAX, EndpointConfig, VersionConfig, endpoint_name
from serve.deployments import directory
from serve.deployments.stages import compare
from serve.rows import read_rows
from tests.bundles import make_bundle

CONFIG = EndpointConfig(name="m", versions=(VersionConfig(version="1", bundle="/b/1"),), default_version="1")


def test_a_new_version_becomes_the_default_and_rollback_returns() -> None:
    second = CONFIG.with_version("/b/2")
    assert (second.default_version, [v.version for v in second.loaded]) == ("2", ["2"])
    back = second.rolled_back()
    assert back is not None
    assert (back.default_version, back.rolled_back()) == ("1", None)
    assert [v.version for v in back.with_version("/b/3").versions] == ["1", "2", "3"]


def test_history_is_bounded_and_numbers_never_return() -> None:
    config = CONFIG
    for number in range(2, 2 * HISTORY_MAX):
        config = config.with_version(f"/b/{number}")
    assert len(config.versions) == HISTORY_MAX
    assert config.default_version == str(2 * HISTORY_MAX - 1)


def test_the_policy_says_what_is_loaded() -> None:
    three = CONFIG.with_version("/b/2").with_version("/b/3")
    for policy, loaded in (("latest", ["3"]), ("all", ["3", "1", "2"]), (("1",), ["3", "1"])):
        chosen = EndpointConfig.from_json({**three.to_json(), "policy": policy})
        assert [v.version for v in chosen.loaded] == loaded
    for wrong in ({"policy": ["9"]}, {"default_version": "9"}, {"nmae": 1}):
        with pytest.raises(ValidationError):
            EndpointConfig.from_json({**three.to_json(), **wrong})


@pytest.mark.parametrize(
    ("text", "name"), [("Quick Start", "quick-start"), ("2024_run", "m-2024-run"), ("a" * 80, "a" * 63), ("x-", "x")]
)
def test_any_name_becomes_an_endpoints(text: str, name: str) -> None:
    assert endpoint_name(text) == name


def test_rows_come_from_files_of_four_kinds(tmp_path: Path) -> None:
    metadata = {"inputs": [{"name": "x", "shape": [-1, 1, 2, 2]}]}
    (tmp_path / "a.csv").write_text("age,city\n3,Rome\n")
    assert read_rows(tmp_path / "a.csv", metadata) == [{"age": "3", "city": "Rome"}]
    (tmp_path / "a.json").write_text(json.dumps({"age": 3}))
    assert read_rows(tmp_path / "a.json", metadata) == [{"age": 3}]
    np.save(tmp_path / "a.npy", np.eye(2))
    assert read_rows(tmp_path / "a.npy", metadata) == [[1.0, 0.0], [0.0, 1.0]]
    Image.new("L", (4, 4), 255).save(tmp_path / "a.png")
    assert read_rows(tmp_path / "a.png", metadata) == [[[[1.0, 1.0], [1.0, 1.0]]]]
    for bad in ("a.txt", "absent.csv"):
        with pytest.raises(RequestError):
            read_rows(tmp_path / bad, metadata)


def test_a_record_lives_as_long_as_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.deployments.directory.tempfile.gettempdir", lambda: str(tmp_path))
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


def test_the_comparison_counts_labels_and_agreement(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "c"))
    outputs = np.eye(10, dtype=np.float32)[[0, 1, 2, 3]]
    found = compare(bundle, outputs, np.array([0, 1, 2, 9]), np.eye(10)[[0, 1, 5, 3]])
    assert found == {"accuracy": 0.75, "agreement": 0.75}
    values = open_bundle(make_bundle(tmp_path / "r", task="regression", num_outputs=1))
    found = compare(values, np.array([[1.0], [2.0]]), np.array([1.0, 4.0]), np.array([[1.0], [3.0]]))
    assert found == {"mean_absolute_error": 1.0, "agreement": 0.5}
