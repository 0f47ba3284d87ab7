"""Versions on Ray Serve under traffic: a new one comes without a lost request, a bad one changes nothing, and back.

One endpoint for all: each test begins with its first version.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from cluster.errors import BundleError, EndpointError, MantaError, RequestError
from serve.client import EndpointClient
from serve.config import EndpointConfig, VersionConfig
from serve.deployments.application import hand_over, reserved_now
from serve.deployments.endpoint import (
    RolloutOptions,
    configuration,
    deploy,
    history,
    promote,
    roll_out,
    rollback,
    undeploy,
)
from serve.rollout import Rollout
from tests.bundles import make_bundle
from tests.integration.serve_tests.bad_bundles import BAD, DIES, RAISES, WRONG, with_other_answers
from tests.integration.serve_tests.conftest import one_version
from tests.integration.serve_tests.test_faults import eventually, ours

X = {"x": np.zeros((1, 1, 8, 8), np.float32)}


class Traffic:
    """Asks without pause in a thread; remembers versions that answered and every failure."""

    def __init__(self, url: str, name: str) -> None:
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, name), daemon=True)

    def _run(self, url: str, name: str) -> None:
        with EndpointClient(url, name) as client:
            while not self._stop.is_set():
                try:
                    self.versions[client.infer(X).version] += 1
                except EndpointError as error:
                    self.failures.append(error.found)

    @contextmanager
    def running(self) -> Iterator[Traffic]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(30)


@pytest.fixture(scope="module")
def place(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EndpointConfig, str]]:
    first = make_bundle(tmp_path_factory.mktemp("rolling") / "first", name="rolling", seed=1)
    found = deploy(one_version("rolling", first, port=0))
    config = configuration("rolling")
    assert config is not None
    yield config, found.url
    undeploy("rolling")


@pytest.fixture
def rolling(place: tuple[EndpointConfig, str]) -> tuple[EndpointConfig, str]:
    assert deploy(place[0], RolloutOptions(force=True)).version == "1"
    return place


def next_version(bundle: Path, options: RolloutOptions | None = None) -> str:
    """`manta deploy` of a bundle."""
    return roll_out(
        "rolling",
        lambda now: EndpointConfig.of_bundle("rolling", bundle, before=now.config),
        options or RolloutOptions(),
    ).version


def states() -> dict[str, str]:
    return {each.version: each.state for each in history("rolling").versions}


def test_versions_change_under_traffic_without_a_lost_request(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    _, url = rolling
    with Traffic(url, "rolling").running() as traffic, EndpointClient(url, "rolling") as client:
        before = client.infer(X).outputs["logits"]
        second = next_version(make_bundle(tmp_path / "second", name="rolling", seed=2))
        after = client.infer(X)
        assert after.version == second
        assert not np.allclose(after.outputs["logits"], before)
        assert rollback("rolling").version == "1"
        np.testing.assert_array_equal(client.infer(X).outputs["logits"], before)
        third = next_version(make_bundle(tmp_path / "third", name="rolling", seed=3))
        assert rollback("rolling").version == "1", "a way back leads to what was served well, not to what was fled from"
        assert rollback("rolling", second, RolloutOptions(reason="tried again")).version == second
    assert traffic.failures == []
    assert set(traffic.versions) == {"1", second, third}
    assert {states()[each] for each in ("1", third)} == {"retired"}
    found = history("rolling")
    assert (found.changes[-2].version, found.changes[-2].state) == (second, "serving")
    assert found.changes[-2].by.reason == "tried again"
    with pytest.raises(RequestError, match="no version served well before it"):
        rollback("rolling")


def test_the_same_bytes_are_the_same_version_and_change_nothing(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    config, _ = rolling
    before = history("rolling")
    found = roll_out(
        "rolling", lambda now: EndpointConfig.of_bundle("rolling", Path(config.default.bundle), before=now.config)
    )
    assert (found.version, found.unchanged, history("rolling")) == ("1", True, before)


def test_two_versions_answer_side_by_side_each_by_its_path(rolling: tuple[EndpointConfig, str], tmp_path: Path) -> None:
    _, url = rolling
    bundle = make_bundle(tmp_path / "second", name="rolling", seed=2)

    def both(now: Rollout) -> EndpointConfig:
        return EndpointConfig.of_bundle("rolling", bundle, before=now.config).with_values({"versions": ["1"]})

    with EndpointClient(url, "rolling") as client:
        before = client.infer(X).outputs["logits"]
        second = roll_out("rolling", both).version
        old, new, default = client.infer(X, version="1"), client.infer(X, version=second), client.infer(X)
        assert (old.version, new.version, default.version) == ("1", second, second)
        np.testing.assert_array_equal(old.outputs["logits"], before)
        np.testing.assert_array_equal(new.outputs["logits"], default.outputs["logits"])
        ready = {entry["version"] for entry in client.index() if entry["state"] == "READY"}
        assert ready == {"1", second}
        policy = client.get(f"/v2/models/rolling/versions/{second}/config")["version_policy"]
        assert policy == {"specific": {"versions": [int(second), 1]}}
        assert [entry["version"] for entry in client.get("/stats")] == ["1", second]


def refused(bundle: Path, seconds: float = 60.0, progress: Callable[[str], None] = print) -> MantaError:
    def plan(now: Rollout) -> EndpointConfig:
        wanted = EndpointConfig.of_bundle("rolling", bundle, before=now.config)
        return wanted.with_values({"ready_timeout_s": seconds})

    with pytest.raises(MantaError) as caught:
        roll_out("rolling", plan, RolloutOptions(force=True, progress=progress))
    assert "Traceback" not in caught.value.message
    return caught.value


def test_a_version_that_cannot_be_served_is_never_given_to_a_replica(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    """One replica, and a bundle that raises, ends its process, answers wrongly."""
    config, url = rolling
    lines: list[str] = []
    with Traffic(url, "rolling").running() as traffic:
        reasons = [refused(BAD[kind](tmp_path / kind), progress=lines.append).found for kind in (RAISES, DIES, WRONG)]
    assert lines.count("version 1 serves on") == 3
    assert "starting replicas" not in lines
    assert "Reshape" in reasons[0]
    assert reasons[1] == "the process that loaded it died"
    assert "logits" in reasons[2]
    assert traffic.failures == []
    assert set(traffic.versions) == {"1"}
    assert configuration("rolling") == config
    failed = [each for each in history("rolling").versions if each.state == "failed"][-3:]
    assert [each.by.reason for each in failed] == reasons
    assert [each.version for each in config.versions] == ["1"]


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("kind", sorted(BAD.keys() - {RAISES, DIES, WRONG}))
def test_no_kind_of_bad_bundle_costs_a_request(rolling: tuple[EndpointConfig, str], tmp_path: Path, kind: str) -> None:
    config, url = rolling
    bundle = BAD[kind](tmp_path / "bad")
    with Traffic(url, "rolling").running() as traffic:
        refused(bundle, seconds=5.0 if kind == "hangs" else 60.0)
    assert traffic.failures == []
    assert set(traffic.versions) <= {"1"}, "a bundle that cannot be copied is refused before a request is answered"
    assert configuration("rolling") == config


def test_other_inputs_or_outputs_are_refused_with_both_signatures_and_taken_by_force(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    config, url = rolling
    other = make_bundle(tmp_path / "other", name="rolling", item_shape=(4,), num_outputs=3)
    with pytest.raises(RequestError) as caught:
        next_version(other)
    assert "inputs x FP32 [-1, 1, 8, 8], version" in caught.value.found
    assert "x FP32 [-1, 4]" in caught.value.found
    assert "logits FP32 [-1, 10]" in caught.value.found
    assert configuration("rolling") == config
    forced = next_version(other, RolloutOptions(force=True))
    with EndpointClient(url, "rolling") as client:
        assert client.infer({"x": np.zeros((1, 4), np.float32)}).version == forced


@pytest.mark.slow  # four versions
def test_of_two_deploys_at_once_neither_is_lost(rolling: tuple[EndpointConfig, str], tmp_path: Path) -> None:
    """Another client is faster, once before this one has decided and once before it has handed over."""
    _, url = rolling
    first, second, third, fourth = (
        make_bundle(tmp_path / str(seed), name="rolling", seed=seed) for seed in (4, 5, 6, 7)
    )
    others: list[str] = []

    def overtaken(now: Rollout) -> EndpointConfig:
        if not others:
            others.append(next_version(first))
        return EndpointConfig.of_bundle("rolling", second, before=now.config)

    def meanwhile(words: str) -> None:
        if words == "starting replicas":
            others.append(next_version(third))

    with Traffic(url, "rolling").running() as traffic:
        mine = roll_out("rolling", overtaken).version
        assert int(mine) == int(others[0]) + 1
        with pytest.raises(RequestError) as caught:
            next_version(fourth, RolloutOptions(progress=meanwhile))
    assert f"another command has deployed version {others[1]} meanwhile" in caught.value.found
    assert traffic.failures == []
    found = history("rolling")
    assert found.config is not None
    assert [Path(each.bundle).name for each in found.config.versions][-4:] == ["4", "5", "7", "6"]
    assert configuration("rolling") == found.config
    with EndpointClient(url, "rolling") as client:
        assert client.infer(X).version == others[1] == found.config.default_version


@pytest.mark.slow  # three roll-outs
def test_a_canary_answers_its_share_until_it_is_promoted(rolling: tuple[EndpointConfig, str], tmp_path: Path) -> None:
    config, url = rolling
    bundle = make_bundle(tmp_path / "canary", name="rolling", seed=10)

    def tried(now: Rollout) -> EndpointConfig:
        wanted = EndpointConfig.of_bundle("rolling", bundle, before=now.config)
        return wanted.with_default("1").with_canary(wanted.default_version, 25)

    body = {"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}]}
    with Traffic(url, "rolling").running() as traffic:
        deployed = roll_out("rolling", tried)
        canary = deployed.version
        assert f"Version {canary} is a canary of 'rolling': it answers 25 % of the requests" in deployed.summary
        assert states()[canary] == "canary"
        with EndpointClient(url, "rolling") as client:
            answered = Counter(client.infer(X).version for _ in range(40))
            headers = [{"x-manta-canary": word} for word in ("always", "never")]
            path = f"{url}/v2/models/rolling/infer"
            asked = [httpx.post(path, json=body, headers=each, trust_env=False).json() for each in headers]
        assert answered["1"] > answered[canary] > 0
        assert [each["model_version"] for each in asked] == [canary, "1"]
        assert rollback("rolling").version == "1"
        assert states()[canary] == "retired"
        assert configuration("rolling") == config.model_copy(update={"versions": history_versions()})
        assert roll_out("rolling", tried).version == canary
        assert promote("rolling").version == canary
    assert traffic.failures == []
    assert (states()["1"], states()[canary]) == ("retired", "serving")
    with EndpointClient(url, "rolling") as client:
        assert client.infer(X).version == canary
    with pytest.raises(RequestError, match="it has none"):
        promote("rolling")


def history_versions() -> tuple[VersionConfig, ...]:
    found = history("rolling").config
    assert found is not None
    return found.versions


def test_the_first_version_that_cannot_be_served_leaves_nothing(ray_local: str, tmp_path: Path) -> None:
    torn = make_bundle(tmp_path / "torn", name="torn")
    (torn / "sample.npz").unlink()
    with pytest.raises(BundleError, match=r"sample\.npz"):
        deploy(one_version("torn", torn, port=0))
    wrong = with_other_answers(make_bundle(tmp_path / "wrong", name="torn"))
    with pytest.raises(EndpointError, match="logits"):
        deploy(one_version("torn", wrong, port=0))
    assert history("torn").config is None


def replicas() -> list[psutil.Process]:
    found = []
    for process in ours("ServeReplica"):
        with suppress(psutil.Error):  # it has just ended
            found += [process] if "rolling" in "".join(process.cmdline()) else []
    return found


def kill_the_replica(url: str) -> None:
    """And wait until its successor answers."""
    (replica,) = replicas()
    replica.kill()
    replica.wait(10)
    with EndpointClient(url, "rolling", timeout_s=1.0) as client:
        eventually(client.is_ready)


@pytest.mark.slow  # replicas start anew
def test_a_replica_that_starts_serves_what_was_deployed_whatever_became_of_the_folder(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    _, url = rolling
    with EndpointClient(url, "rolling") as client:
        good = make_bundle(tmp_path / "run", name="rolling", seed=6)
        version = next_version(good)
        before = client.infer(X).outputs["logits"]
        make_bundle(good, name="rolling", seed=7)  # the run is repeated
        kill_the_replica(url)
        found = client.infer(X)
        assert found.version == version
        np.testing.assert_array_equal(found.outputs["logits"], before)


@pytest.mark.soak  # two clients and two replicas start
def test_a_replica_that_starts_serves_whatever_became_of_the_client(
    rolling: tuple[EndpointConfig, str], ray_local: str, tmp_path: Path
) -> None:
    _, url = rolling
    with EndpointClient(url, "rolling") as client:
        kill_a_client(ray_local, BAD["hangs"](tmp_path / "bad"), when="loading version")
        kill_the_replica(url)
        assert client.infer(X).version == "1"
        kill_a_client(ray_local, make_bundle(tmp_path / "next", name="rolling", seed=8), when="starting replicas")
        kill_the_replica(url)
        assert client.infer(X).version in ("1", history("rolling").versions[-1].version)


def kill_a_client(address: str, bundle: Path, when: str) -> None:
    """`kill -9` of a deploy at this line of it."""
    words = ["deploy", str(bundle), "--name", "rolling", "--force", "--address", address]
    command = [sys.executable, "-m", "serve.deployments", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if when in line:
                break
        process.kill()
    assert when in lines[-1], "".join(lines)


@pytest.mark.slow  # a replica starts anew
def test_a_replica_that_cannot_load_what_a_dead_client_left_serves_what_served_before(
    rolling: tuple[EndpointConfig, str], tmp_path: Path
) -> None:
    """A version that was proved on another node, and that this one cannot load."""
    config, url = rolling
    wrong = with_other_answers(make_bundle(tmp_path / "wrong", name="rolling"))
    left = config.with_version(str(wrong)).model_copy(update={"fallback": "1"})
    hand_over(left, reserved_now("rolling"))
    kill_the_replica(url)
    with EndpointClient(url, "rolling") as client:
        assert client.infer(X).version == "1"
        reasons = {entry["version"]: entry["reason"] for entry in client.index()}
    assert "logits" in reasons[left.default_version]


@pytest.mark.slow  # a second replica starts and drains
def test_a_new_version_with_fewer_replicas_answers_at_once(rolling: tuple[EndpointConfig, str], tmp_path: Path) -> None:
    config, url = rolling
    deploy(config.with_values({"replicas.min": 2, "replicas.max": 2}))
    bundle = make_bundle(tmp_path / "second", name="rolling", seed=9)

    def fewer(now: Rollout) -> EndpointConfig:
        return EndpointConfig.of_bundle("rolling", bundle, before=now.config).with_values(
            {"replicas.min": 1, "replicas.max": 1}
        )

    with Traffic(url, "rolling").running() as traffic:
        started = time.monotonic()
        second = roll_out("rolling", fewer).version
        took_s = time.monotonic() - started
        eventually(lambda: len(replicas()) == 1)
    assert traffic.failures == []
    assert took_s < 15, "the new version waited until a replica had drained"
    with EndpointClient(url, "rolling") as client:
        assert client.infer(X).version == second
