"""While workers train, the waiting thread loads what later stages begin with; what cannot be loaded ends nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.pipeline.stage import StageContext
from trainers.launch import stage as stage_module
from trainers.launch.ready_workers import ReadyWorkers


def context(*later: str) -> StageContext:
    return cast(StageContext, SimpleNamespace(later=later))


def test_only_stages_that_come_are_loaded_and_a_missing_library_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        if name == "lost":
            raise ModuleNotFoundError("No module named 'lost'")

    monkeypatch.setattr(stage_module.importlib, "import_module", load)
    monkeypatch.setattr(stage_module, "LOADED_MEANWHILE", {"evaluate": ("one",), "export": ("lost", "two")})
    stage_module._load_later_stages(context("compress", "export"))
    assert loaded == ["lost", "two"]
    stage_module._load_later_stages(context())  # manta train
    assert loaded == ["lost", "two"]


def test_what_is_done_meanwhile_is_done_once() -> None:
    calls: list[int] = []
    ready = ReadyWorkers(meanwhile=lambda: calls.append(1))
    ready.pass_time()
    ready.pass_time()  # a second attempt, after a lost worker
    assert calls == [1]
