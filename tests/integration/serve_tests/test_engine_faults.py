"""An engine that wedges, dies, is out of memory or made for another GPU; a clock that jumps: one request's trouble.

The engines are real processes (serve/engines/process.py) that simulate a model. Not covered: a real GPU's faults.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BundleError, MantaError
from serve.config import EndpointConfig, VersionConfig
from serve.doors.asgi import AsgiDoor
from serve.doors.rest import Answer, error_answer
from serve.protocol.limits import Limits
from serve.server import open_door
from tests.bundles import make_simulated_bundle

WEDGE, DIE = 111.0, 222.0
Ask = Callable[[float], Coroutine[Any, Any, Answer]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_simulated_bundle(tmp_path_factory.mktemp("faults") / "bundle", wedge_at=WEDGE, die_at=DIE)


def config_of(bundle: Path, **changes: Any) -> EndpointConfig:
    config = EndpointConfig(
        name="m",
        versions=(VersionConfig(version="1", bundle=str(bundle)),),
        default_version="1",
        engine_process=True,
        call_timeout_s=1.0,
    )
    return config.model_copy(update=changes)


def asker(door: AsgiDoor) -> Ask:
    async def ask(value: float) -> Answer:
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [value, 0, 0, 0]}
        try:
            return await door.rest.infer("m", "", json.dumps({"inputs": [tensor]}).encode())
        except MantaError as error:
            return error_answer(error)

    return ask


def run(config: EndpointConfig, test: Callable[[AsgiDoor, Ask], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        door = await open_door(config, Limits())
        try:
            await asyncio.wait_for(test(door, asker(door)), 60)
        finally:
            await door.dataplane.repository.close()

    asyncio.run(whole())


def value_of(answer: Answer) -> float:
    assert answer.status == 200, answer.body
    return float(json.loads(answer.body)["outputs"][0]["data"][0])


@pytest.mark.parametrize(("mark", "words"), [(WEDGE, "gave no answer in 1 s"), (DIE, "died in the call")])
def test_a_wedged_or_dead_engine_costs_the_request_that_did_it(bundle: Path, mark: float, words: str) -> None:
    async def test(door: AsgiDoor, ask: Ask) -> None:
        good = [asyncio.create_task(ask(float(value))) for value in range(3)]
        assert [value_of(answer) for answer in await asyncio.gather(*good)] == [0.0, 1.0, 2.0]
        bad = asyncio.create_task(ask(mark))
        while not door.dataplane.repository.models["1"].batcher.running:
            await asyncio.sleep(0)
        others = [asyncio.create_task(ask(float(value))) for value in range(10, 15)]
        started = time.monotonic()
        await asyncio.sleep(0)
        assert time.monotonic() - started < 0.2, "the event loop is free: health is answered"
        assert (await door.rest.other("GET", ["health", "ready"], b"")).status == 200
        refused = await bad
        assert (refused.status, words in json.loads(refused.body)["error"]) == (500, True)
        assert [value_of(answer) for answer in await asyncio.gather(*others)] == [10.0, 11.0, 12.0, 13.0, 14.0]
        assert door.dataplane.repository.failed == ""

    run(config_of(bundle), test)


def test_a_version_for_another_gpu_or_without_memory_leaves_the_old_one(bundle: Path, tmp_path: Path) -> None:
    why = "the plan was built for compute capability 9.0, this GPU has 8.6"
    foreign = make_simulated_bundle(tmp_path / "foreign", refuse=why)
    greedy = make_simulated_bundle(tmp_path / "greedy", memory_rows=0)

    async def test(door: AsgiDoor, ask: Ask) -> None:
        repository = door.dataplane.repository
        config = config_of(bundle, engine_process=False)
        for path, words in ((foreign, "8.6"), (greedy, "out of memory")):
            asking = [asyncio.create_task(ask(float(value))) for value in range(20)]
            with pytest.raises(Exception, match=words) as caught:
                await repository.apply(config.with_version(str(path)))
            assert type(caught.value).__module__ == "cluster.errors"
            assert [value_of(answer) for answer in await asyncio.gather(*asking)] == [float(v) for v in range(20)]
            states = {entry["version"]: entry["state"] for entry in repository.index()}
            assert states == {"1": "READY", "2": "UNAVAILABLE"}
        assert repository.config == config

    run(config_of(bundle, engine_process=False), test)


def test_a_folder_that_was_written_anew_is_another_version(tmp_path: Path) -> None:
    first = make_simulated_bundle(tmp_path / "bundle", seed=1)
    from cluster.atomic import sha256_file

    digest = sha256_file(first / "manifest.json")
    version = VersionConfig(version="1", bundle=str(first), manifest_sha256=digest)
    config = EndpointConfig(name="m", versions=(version,), default_version="1")

    async def test(door: AsgiDoor, ask: Ask) -> None:
        make_simulated_bundle(first, seed=2)
        assert value_of(await ask(3.0)) == 3.0, "what is loaded goes on"
        await door.controlplane.unload("m")
        with pytest.raises(BundleError, match="written anew"):
            await door.controlplane.load("m")

    run(config, test)


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_changes_no_deadline_and_no_statistic(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    async def test(door: AsgiDoor, ask: Ask) -> None:
        model = door.dataplane.repository.models["1"]
        asking = [asyncio.create_task(ask(float(value))) for value in range(5)]
        real_time, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real_time() + jump_s)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(jump_s * 1e9))
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [7, 0, 0, 0]}]}
        timed = {**body, "parameters": {"timeout": 30_000_000}}
        assert value_of(await door.rest.infer("m", "", json.dumps(timed).encode())) == 7.0
        assert [value_of(answer) for answer in await asyncio.gather(*asking)] == [0.0, 1.0, 2.0, 3.0, 4.0]
        window = model.statistics.window()
        assert 0 <= window["span_s"] < 60
        assert 0 < window["latency_ms_p99"] < 60_000
        assert model.batcher.oldest_wait_s == 0

    run(config_of(bundle, engine_process=False), test)
