"""An endpoint's configuration: its versions, which of them are loaded, a run's YAML, the form of an older Manta."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import RequestError
from cluster.spec.serve import BatchingSpec, QueueSpec, ReplicaSpec, ServeSpec, TensorRtSpec
from serve.config import HISTORY_MAX, EndpointConfig, VersionConfig, endpoint_name
from serve.models.model import version_policy
from tests.bundles import make_bundle

CONFIG = EndpointConfig(name="m", versions=(VersionConfig(version="1", bundle="/b/1"),), default_version="1")


def test_a_new_version_becomes_the_default_and_an_older_one_may_be_it_again() -> None:
    second = CONFIG.with_version("/b/2")
    assert (second.default_version, [v.version for v in second.loaded]) == ("2", ["2"])
    back = second.with_default("1")
    assert (back.default_version, [v.version for v in back.loaded]) == ("1", ["1"])
    assert [v.version for v in back.with_version("/b/3").versions] == ["1", "2", "3"]


def test_history_is_bounded_and_numbers_never_return_and_what_is_served_stays_in_it() -> None:
    config = CONFIG
    for number in range(2, 2 * HISTORY_MAX):
        config = config.with_version(f"/b/{number}")
    assert len(config.versions) == HISTORY_MAX
    assert config.default_version == str(2 * HISTORY_MAX - 1)
    oldest = config.with_default(config.versions[0].version)
    again = oldest.with_version("/b/new")
    assert (len(again.versions), again.versions[0]) == (HISTORY_MAX, oldest.default)


def test_a_new_number_is_the_default_versions_everywhere() -> None:
    second = CONFIG.with_version("/b/2").with_values({"versions": ["1", "2"]}).numbered("5")
    assert (second.default_version, second.spec.versions) == ("5", ("1", "5"))
    assert [(v.version, v.bundle) for v in second.versions] == [("1", "/b/1"), ("5", "/b/2")]


def test_a_version_is_read_from_its_own_copy_and_from_the_deployed_folder_where_there_is_none(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert VersionConfig(version="1", bundle="/gone", kept=str(bundle)).folder == bundle
    assert VersionConfig(version="1", bundle=str(bundle), kept="/gone").folder == bundle


def test_the_policy_says_what_is_loaded() -> None:
    three = CONFIG.with_version("/b/2").with_version("/b/3")
    for policy, loaded in (("latest", ["3"]), ("all", ["3", "1", "2"]), (("1",), ["3", "1"])):
        chosen = EndpointConfig.from_json({**three.to_json(), "spec": {"versions": policy}})
        assert [v.version for v in chosen.loaded] == loaded
    for wrong in ({"spec": {"versions": ["9"]}}, {"default_version": "9"}, {"nmae": 1}):
        with pytest.raises(ValidationError):
            EndpointConfig.from_json({**three.to_json(), **wrong})


@pytest.mark.parametrize(
    ("text", "name"), [("Quick Start", "quick-start"), ("2024_run", "m-2024-run"), ("a" * 80, "a" * 63), ("x-", "x")]
)
def test_any_name_becomes_an_endpoints(text: str, name: str) -> None:
    assert endpoint_name(text) == name


def test_a_run_that_is_deployed_again_is_a_new_version_only_where_its_bundle_is_new(tmp_path: Path) -> None:
    spec = ServeSpec(versions=("1",), queue=QueueSpec(max_rows=7, max_mib=3), access_log=0.25, device="cuda")
    first = EndpointConfig.of_run("m", make_bundle(tmp_path / "bundle", seed=1), spec)
    assert (first.default_version, first.spec, first.device) == ("1", spec, "cuda")
    again = EndpointConfig.of_run("m", tmp_path / "bundle", spec, first)
    assert again == first
    elsewhere = Path(shutil.copytree(tmp_path / "bundle", tmp_path / "copy"))
    assert EndpointConfig.of_bundle("m", elsewhere, before=first) == first, "the same bytes are the same version"
    second = EndpointConfig.of_run("m", make_bundle(tmp_path / "bundle", seed=2), spec, first)
    assert (second.default_version, [v.version for v in second.loaded]) == ("2", ["2", "1"])
    assert second.versions[0].manifest_sha256 != second.versions[1].manifest_sha256
    back = EndpointConfig.of_bundle("m", elsewhere, before=second)
    assert (back.default_version, back.versions) == ("1", second.versions)
    with pytest.raises(RequestError, match="version '9'"):
        EndpointConfig.of_run("m", tmp_path / "bundle", ServeSpec(versions=("9",)), first)


def test_a_list_of_versions_forgets_what_history_has_dropped() -> None:
    config = CONFIG.with_values({"versions": ["1"]})
    for number in range(2, HISTORY_MAX + 2):
        config = config.with_version(f"/b/{number}")
    assert EndpointConfig.from_json(config.to_json()).spec.versions == ()


def test_a_configuration_of_before_the_spec_was_part_of_it_is_read() -> None:
    flat = {
        "name": "m", "versions": [{"version": "2", "bundle": "/b", "variant": None, "manifest_sha256": "00"}],
        "default_version": "2", "policy": ["2"], "batching": {"max_rows": 8, "max_wait_ms": "auto"},
        "queue": {"max_rows": 9, "max_mib": 8, "max_wait_ms": None}, "access_log": 0.5, "allow_non_finite": True,
        "unseen": "refuse", "replicas": {"min": 0, "max": 2}, "token_file": "/t", "admin_token_file": None,
        "device": "cuda", "tensorrt": {"streams": 2}, "engine_process": None, "call_timeout_s": 60.0,
        "num_threads": 2, "loads": 3,
    }  # fmt: skip
    spec = ServeSpec(
        versions=("2",),
        batching=BatchingSpec(max_rows=8, max_wait_ms="auto"),
        queue=QueueSpec(max_rows=9, max_mib=8, max_wait_ms=None),
        access_log=0.5,
        allow_non_finite=True,
        unseen="refuse",
        replicas=ReplicaSpec(min=0, max=2),
        token_file="/t",
        device="cuda",
        engine="tensorrt",
        tensorrt=TensorRtSpec(streams=2),
    )
    version = VersionConfig(version="2", bundle="/b", manifest_sha256="00")
    wanted = EndpointConfig(name="m", versions=(version,), default_version="2", spec=spec, num_threads=2, loads=3)
    assert EndpointConfig.from_json(flat) == wanted
    assert EndpointConfig.from_json({**flat, "tensorrt": None}).tensorrt is None
    assert EndpointConfig.from_json({**flat, "device": "cuda:1"}).device == "cuda:1"
    without = {key: value for key, value in flat.items() if key != "policy"}
    assert EndpointConfig.from_json(without).spec.versions == "latest"


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("latest", {"latest": {"num_versions": 1}}),
        ("all", {"all": {}}),
        (("1",), {"specific": {"versions": [2, 1]}}),
    ],
)
def test_the_policy_is_told_in_tritons_words(policy: Any, told: dict[str, Any]) -> None:
    assert version_policy(CONFIG.with_version("/b/2").with_values({"versions": policy})) == told
