"""Names, rows from files, records of endpoints, the comparison that the predict stage makes, versions of a config."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from ray.serve.exceptions import RayServeException

from cluster.bundle import open_bundle
from cluster.cli.app import app
from cluster.errors import MantaError, RequestError
from cluster.spec.serve import QueueSpec, ReplicaSpec, ServeSpec
from serve.batching.batcher import SWITCH_INTERVAL_S
from serve.config import HISTORY_MAX, EndpointConfig, VersionConfig, endpoint_name
from serve.deployments import directory
from serve.deployments.__main__ import parse
from serve.deployments.commands import _wanted
from serve.deployments.keeping import FAREWELL_S, Keeper
from serve.deployments.replica import EndpointReplica
from serve.deployments.stages import compare
from serve.models.model import version_policy
from serve.row_files import read_image, read_rows
from serve.server import listen, open_door, serve_endpoint
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


def test_rows_come_from_files_of_three_kinds_and_images_go_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,city\n3,Rome\n")
    assert read_rows(tmp_path / "a.csv") == [{"age": "3", "city": "Rome"}]
    (tmp_path / "a.json").write_text(json.dumps({"age": 3}))
    assert read_rows(tmp_path / "a.json") == [{"age": 3}]
    np.save(tmp_path / "a.npy", np.eye(2))
    assert read_rows(tmp_path / "a.npy") == [[1.0, 0.0], [0.0, 1.0]]
    Image.new("L", (4, 4), 255).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png") == (tmp_path / "a.png").read_bytes()
    for bad in ("a.txt", "absent.csv"):
        with pytest.raises(RequestError):
            read_rows(tmp_path / bad)
    with pytest.raises(RequestError):
        read_image(tmp_path / "absent.png")


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


def test_the_comparison_counts_labels_and_agreement(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "c"))
    outputs = np.eye(10, dtype=np.float32)[[0, 1, 2, 3]]
    found = compare(bundle, outputs, np.array([0, 1, 2, 9]), np.eye(10)[[0, 1, 5, 3]])
    assert found == {"accuracy": 0.75, "agreement": 0.75}
    values = open_bundle(make_bundle(tmp_path / "r", task="regression", num_outputs=1))
    found = compare(values, np.array([[1.0], [2.0]]), np.array([1.0, 4.0]), np.array([[1.0], [3.0]]))
    assert found == {"mean_absolute_error": 1.0, "agreement": 0.5}
    student = values.manifest.variant().model_copy(update={"recipe": "distill"})
    accepted = replace(values, manifest=values.manifest.model_copy(update={"variants": (student,)}))
    targets, evaluated = np.array([100.0, 220.0]), np.array([[110.0], [210.0]])
    assert compare(accepted, np.array([[105.0], [215.0]]), targets, evaluated)["agreement"] == 1.0, "off by no more"
    assert compare(accepted, np.array([[0.1], [0.2]]), targets, evaluated)["agreement"] == 0.0, "of another unit"


def test_a_run_that_is_deployed_again_is_a_new_version_only_where_its_bundle_is_new(tmp_path: Path) -> None:
    spec = ServeSpec(versions=("1",), queue=QueueSpec(max_rows=7, max_mib=3), access_log=0.25, device="cuda")
    first = EndpointConfig.of_spec(spec, "m", make_bundle(tmp_path / "bundle", seed=1))
    assert (first.default_version, first.queue, first.access_log, first.device) == ("1", spec.queue, 0.25, "cuda")
    again = EndpointConfig.of_spec(spec, "m", tmp_path / "bundle", first)
    assert again == first
    second = EndpointConfig.of_spec(spec, "m", make_bundle(tmp_path / "bundle", seed=2), first)
    assert (second.default_version, [v.version for v in second.loaded]) == ("2", ["2", "1"])
    assert second.versions[0].manifest_sha256 != second.versions[1].manifest_sha256
    with pytest.raises(RequestError, match="version '9'"):
        EndpointConfig.of_spec(ServeSpec(versions=("9",)), "m", tmp_path / "bundle", first)


def test_a_list_of_versions_forgets_what_history_has_dropped() -> None:
    config = CONFIG.model_copy(update={"policy": ("1",)})
    for number in range(2, HISTORY_MAX + 2):
        config = config.with_version(f"/b/{number}")
    assert EndpointConfig.from_json(config.to_json()).policy == ()


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("latest", {"latest": {"num_versions": 1}}),
        ("all", {"all": {}}),
        (("1",), {"specific": {"versions": [2, 1]}}),
    ],
)
def test_the_policy_is_told_in_tritons_words(policy: Any, told: dict[str, Any]) -> None:
    assert version_policy(CONFIG.with_version("/b/2").model_copy(update={"policy": policy})) == told


@pytest.mark.parametrize("words", [("--versions", "newest"), ("--versions", "0"), ("--device", "tpu")])
def test_a_word_that_deploy_does_not_know_is_told(words: tuple[str, str], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(RequestError, match="Cannot deploy"):
        app(["deploy", str(bundle), *words], standalone_mode=False)


def test_what_a_deploy_does_not_say_stays_as_it_was(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    before = CONFIG.model_copy(update={"replicas": ReplicaSpec(min=1, max=4, target_busy=0.5), "policy": "all"})
    plain = _wanted(parse(["deploy", str(bundle)]), "m", before, {})
    assert (plain.default_version, plain.replicas, plain.policy) == ("2", before.replicas, "all")
    words = ["--min-replicas", "2", "--max-replicas", "2", "--versions", "1", "--device", "cuda"]
    told = _wanted(parse(["deploy", str(bundle), *words]), "m", before, {"token_file": "/t"})
    assert (told.replicas.min, told.replicas.max, told.replicas.target_busy) == (2, 2, 0.5)
    assert (told.policy, told.device, told.token_file) == (("1",), "cuda", "/t")
    with pytest.raises(RequestError, match="version '7'"):
        _wanted(parse(["deploy", str(bundle), "--versions", "7"]), "m", before, {})


def test_the_queues_bounds_reach_the_batcher(tmp_path: Path) -> None:
    async def test() -> tuple[int, int, float | None]:
        config = CONFIG.model_copy(
            update={
                "versions": (VersionConfig(version="1", bundle=str(make_bundle(tmp_path / "bundle"))),),
                "queue": QueueSpec(max_rows=5, max_mib=2, max_wait_ms=50.0),
            }
        )
        door = await open_door(config)
        limits = door.dataplane.repository.models["1"].batcher._limits
        await door.dataplane.repository.close()
        return limits.queue_rows, limits.queue_bytes, limits.queue_wait_s

    assert asyncio.run(test()) == (5, 2 << 20, 0.05)


@pytest.fixture
def switch_interval() -> Iterator[Callable[[], float]]:
    before = sys.getswitchinterval()
    yield sys.getswitchinterval
    sys.setswitchinterval(before)


def test_both_serving_processes_switch_threads_soon(switch_interval: Callable[[], float]) -> None:
    """At Python's 5 ms the event loop waits that long for every batch that the engine's thread takes."""
    with listen("127.0.0.1", 0) as listener, pytest.raises(MantaError, match="/b/1"):
        asyncio.run(serve_endpoint(CONFIG, listener))
    assert switch_interval() == pytest.approx(SWITCH_INTERVAL_S)
    sys.setswitchinterval(0.005)
    with pytest.raises(RayServeException, match="replica"):
        EndpointReplica("m")  # it sets the interval, then asks Ray Serve who it is
    assert switch_interval() == pytest.approx(SWITCH_INTERVAL_S)


def test_a_ray_is_kept_until_who_took_its_last_endpoint_away_has_left_it() -> None:
    clock, served, recorded = [0.0], [True], [True]
    keeper = Keeper(lambda: served[0], lambda: recorded[0], lambda: clock[0])
    assert keeper.keep()
    served[0], clock[0] = False, 100.0
    assert keeper.keep(), "an undeploy still talks to this Ray"
    recorded[0] = False
    assert not keeper.keep()
    recorded[0], clock[0] = True, 100.0 + FAREWELL_S
    assert not keeper.keep(), "one that was killed is not waited for"
    served[0] = True
    assert keeper.keep()
