"""`manta deploy`: what flags and `--set` say of the `serve` section, and what is refused before a Ray starts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.app import app
from cluster.errors import RequestError, SpecError
from cluster.spec.load import set_path, validate_spec
from cluster.spec.serve import ServeSpec
from serve.config import EndpointConfig, VersionConfig
from serve.deployments import endpoint as place
from serve.deployments.__main__ import parse
from serve.deployments.commands import _check_token_files, _given_name, _wanted, deploy
from serve.deployments.records import RolloutRecords
from tests.bundles import make_bundle

CONFIG = EndpointConfig(name="m", versions=(VersionConfig(version="1", bundle="/b/1"),), default_version="1")


@pytest.mark.parametrize("words", [("--versions", "newest"), ("--versions", "0"), ("--device", "tpu")])
def test_a_word_that_deploy_does_not_know_is_told(words: tuple[str, str], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(RequestError, match="Cannot deploy"):
        app(["deploy", str(bundle), *words], standalone_mode=False)


def test_what_a_deploy_does_not_say_stays_as_it_was(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    before = CONFIG.with_values({"replicas.max": 4, "replicas.target_busy": 0.5, "versions": "all"})
    plain = _wanted(parse(["deploy", str(bundle)]), "m", before)
    assert (plain.default_version, plain.spec) == ("2", before.spec)
    words = ["--replicas", "2", "--versions", "1", "--device", "cuda", "--token-file", "/t"]
    told = _wanted(parse(["deploy", str(bundle), *words]), "m", before).spec
    assert (told.replicas.min, told.replicas.max, told.replicas.target_busy) == (2, 2, 0.5)
    assert (told.versions, told.device, told.token_file) == (("1",), "cuda", "/t")
    with pytest.raises(RequestError, match="version '7'"):
        _wanted(parse(["deploy", str(bundle), "--versions", "7"]), "m", before)


def test_set_reaches_every_value_of_the_serve_section(tmp_path: Path) -> None:
    words = {
        "name": "shop", "host": "0.0.0.0", "port": 0, "grpc_port": 0, "device": "cuda", "versions": ["1"],
        "replicas": {"max": 3, "target_busy": 0.5}, "batching.max_rows": "auto", "batching.max_wait_ms": 2.5,
        "queue": {"max_rows": 9, "max_mib": 8, "max_wait_ms": None}, "access_log": 0.25, "allow_non_finite": True,
        "cors_origins": ["https://shop.example"],
        "unseen": "refuse", "engine": "tensorrt", "tensorrt.streams": 2, "token_file": "/t", "admin_token_file": "/a",
        "ready_timeout_s": 90.0,
    }  # fmt: skip
    overrides = [word for path, value in words.items() for word in ("--set", f"{path}={json.dumps(value)}")]
    options = parse(["deploy", str(make_bundle(tmp_path / "bundle")), *overrides])
    assert _given_name(options) == "shop"
    found = _wanted(options, "shop", CONFIG).spec
    by_yaml: dict[str, Any] = {}
    for path, value in words.items():
        set_path(by_yaml, path.split("."), value)
    raw = {"version": 1, "data": {"source": {"kind": "sklearn", "dataset": "digits"}}, "serve": by_yaml}
    assert found == validate_spec(raw).serve
    assert {path.partition(".")[0] for path in words} == set(ServeSpec.model_fields)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("batching.max_batch_size=32", "batching.max_batch_size: unknown key; did you mean batching.max_rows?"),
        ("acces_log=1", "acces_log: unknown key; did you mean access_log?"),
        ("queue.max_rows=0", "queue.max_rows: must be greater than or equal to 1, found 0"),
        ("replicas.min=3", "replicas: min (3) must not be above max (1)"),
        ("batching.max_rows", "it is not of the form path=value"),
        ("name=Shop", "name: must match pattern"),
    ],
)
def test_a_wrong_set_is_told_with_the_nearest_key_before_a_ray_starts(
    override: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.temporary.shared_base", lambda: tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.runtime.session.ray_session", lambda address: pytest.fail("a Ray was started"))
    options = parse(["deploy", str(make_bundle(tmp_path / "bundle")), "--set", override])
    with pytest.raises(SpecError, match=re.escape(told)):
        deploy(options)


@pytest.mark.parametrize("key", ["token_file", "admin_token_file"])
def test_a_token_file_that_cannot_be_read_is_refused_before_anything_starts(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.temporary.shared_base", lambda: tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.runtime.session.ray_session", lambda address: pytest.fail("a Ray was started"))
    gone = tmp_path / "gone"
    options = parse(["deploy", str(make_bundle(tmp_path / "bundle")), "--set", f"{key}={gone}"])
    with pytest.raises(RequestError, match="gone"):
        deploy(options)
    kept = ServeSpec.model_validate({key: str(gone)})  # of another host: this command does not give it
    _check_token_files(kept, kept)


def test_a_deploy_that_cannot_read_the_token_has_changed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = RolloutRecords(tmp_path / "records")
    monkeypatch.setattr(place, "open_records", lambda: records)
    monkeypatch.setattr(place, "configuration", lambda name: None)
    monkeypatch.setattr(place, "start_serve", lambda spec: pytest.fail("Ray Serve was started"))
    config = EndpointConfig.of_bundle("m", make_bundle(tmp_path / "bundle"))
    with pytest.raises(RequestError, match="gone"):
        place.deploy(config.with_values({"token_file": str(tmp_path / "gone")}))
    assert records.names() == []


def test_a_name_that_no_endpoint_can_have_is_one_sentence(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    for words in (["--name", "Digits"], ["--name", "a_b"], ["--set", "name=Digits"]):
        with pytest.raises(SpecError, match="name: must match pattern") as caught:
            deploy(parse(["deploy", str(bundle), *words]))
        assert caught.value.exit_code == 2


def test_deploy_takes_a_bundle_or_restore_and_history_a_name(tmp_path: Path) -> None:
    bundle = str(make_bundle(tmp_path / "bundle"))
    for words in (["deploy"], ["deploy", bundle, "--restore"], ["endpoints", "--history"]):
        with pytest.raises(RequestError):
            app(words, standalone_mode=False)
