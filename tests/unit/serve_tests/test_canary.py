"""A canary gets its share and no more, and none when it is worse than what serves beside it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cluster.cli.serving import canary_percent
from cluster.errors import InferenceError, RequestError
from serve.config import EndpointConfig, VersionConfig
from serve.handlers.dataplane import DataPlane
from serve.models import canary
from serve.models.repository import ModelRepository
from serve.protocol.codec import InferRequest
from serve.protocol.limits import Limits
from serve.rollout import By, Rollout, fail, promoted, serve, settle, stage, way_back
from tests.bundles import make_simulated_bundle

BY = By(author="ann@host", unix_s=1.0)
BAD_ROW = 7.0


def config_of(tmp_path: Path, percent: float, **plan: object) -> EndpointConfig:
    stable, tried = (make_simulated_bundle(tmp_path / name, **each) for name, each in (("1", {}), ("2", plan)))
    versions = (VersionConfig(version="1", bundle=str(stable)), VersionConfig(version="2", bundle=str(tried)))
    return EndpointConfig(name="m", versions=versions, default_version="1").with_canary("2", percent)


async def ask(plane: DataPlane, count: int, first: float = 1.0) -> Counter[str]:
    """Which version answered, or failed."""
    found: Counter[str] = Counter()
    request = InferRequest({"x": np.full((1, 4), first, np.float32)})
    for _ in range(count):
        try:
            model, _, _ = await plane.infer("m", "", lambda _: request)
            found[model.version] += 1
        except InferenceError:
            found["failed"] += 1
    return found


def plane_of() -> DataPlane:
    return DataPlane(ModelRepository("m", Limits()), Limits())


def test_a_canary_gets_exactly_its_share_until_it_is_taken_away(tmp_path: Path) -> None:
    config = config_of(tmp_path, 5)

    async def drive() -> None:
        plane = plane_of()
        await plane.repository.apply(config)
        assert await ask(plane, 200) == {"1": 190, "2": 10}
        assert plane.find("m").version == "1", "questions about the model are the stable version's"
        asked = [plane.repository.version_asked(word) for word in ("always", "never", "")]
        assert asked == ["2", "1", ""]
        assert [each["reason"] for each in plane.repository.index()] == ["", "canary, 5 % of the requests"]
        await plane.repository.apply(config.with_canary("2", 50))
        assert await ask(plane, 100) == {"1": 50, "2": 50}
        await plane.repository.apply(config.with_default("1"))
        assert (await ask(plane, 50), list(plane.repository.models)) == ({"1": 50}, ["1"])
        await plane.repository.close()

    asyncio.run(drive())


def test_a_canary_that_fails_more_often_gets_no_more_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "JUDGE_EVERY_S", 0.0)
    config = config_of(tmp_path, 50, raise_at=BAD_ROW)

    async def drive() -> None:
        plane = plane_of()
        await plane.repository.apply(config)
        found = await ask(plane, 200, first=BAD_ROW)
        assert found["failed"] == canary.REQUESTS_MIN
        entries = {entry["version"]: entry["reason"] for entry in plane.repository.index()}
        assert entries == {
            "1": "",
            "2": "canary, stopped: 20 of its 20 requests failed, 0 of the stable version's 20",
        }
        await plane.repository.close()

    asyncio.run(drive())


def test_a_canary_that_is_slower_gets_no_more_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "JUDGE_EVERY_S", 0.0)
    config = config_of(tmp_path, 50, call_s=0.03)

    async def drive() -> None:
        plane = plane_of()
        await plane.repository.apply(config)
        found = await ask(plane, 100)
        assert found["2"] <= canary.REQUESTS_MIN + 1
        assert plane.repository.canary is not None
        assert "its 95th percentile is" in plane.repository.canary.stopped
        await plane.repository.close()

    asyncio.run(drive())


def test_a_canary_that_cannot_be_loaded_leaves_the_stable_version_alone(tmp_path: Path) -> None:
    async def drive() -> None:
        plane = plane_of()
        await plane.repository.apply(config_of(tmp_path, 50, refuse="broken"))
        assert await ask(plane, 10) == {"1": 10}
        await plane.repository.close()

    asyncio.run(drive())


def test_a_canary_is_promoted_or_taken_back_and_the_record_says_so(tmp_path: Path) -> None:
    config = config_of(tmp_path, 5)
    first = config.with_default("1").model_copy(update={"versions": config.versions[:1]})
    one = settle(serve(stage(Rollout(name="m"), first.default, BY), first, BY, instead_of=None), BY)
    with pytest.raises(RequestError, match="it has none"):
        promoted(one)
    staged = stage(one, config.subject, BY)
    tried = serve(staged, config, BY, instead_of=one.config)
    assert {each.version: each.state for each in tried.versions} == {"1": "serving", "2": "canary"}
    assert tried.served == ("1",)
    done = settle(serve(tried, promoted(tried), BY, instead_of=tried.config), BY)
    assert {each.version: each.state for each in done.versions} == {"1": "retired", "2": "serving"}
    assert way_back(done) == "1"
    assert way_back(tried) == "1"
    back = serve(tried, config.with_default("1"), BY, instead_of=tried.config, back=True)
    assert {each.version: each.state for each in back.versions} == {"1": "serving", "2": "retired"}
    assert back.served == ("1",)
    broken = fail(tried, "2", BY, before=staged)
    assert ({each.version: each.state for each in broken.versions}, broken.config) == (
        {"1": "serving", "2": "failed"}, one.config
    )  # fmt: skip


def test_a_share_is_a_number_of_percent() -> None:
    assert [canary_percent(text) for text in (None, "5", "5%", "0.5%", "100%")] == [None, 5.0, 5.0, 0.5, 100.0]
    for wrong in ("", "0", "101%", "five", "-1%"):
        with pytest.raises(RequestError, match="as in 5%"):
            canary_percent(wrong)
