"""A prepared data set of two clouds of points, and contexts for the search stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.pipeline.stage import StageContext
from cluster.telemetry.events import EventSink
from tests.integration.search_tests.clouds import context_over, write_clouds


@pytest.fixture(scope="session")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder."""
    return write_clouds(tmp_path_factory.mktemp("clouds") / "clouds")


@pytest.fixture
def make_context(clouds: Path, tmp_path: Path) -> Callable[..., StageContext]:
    """A search stage's context over the clouds; `search` overrides the section."""

    def make(*, events: EventSink | None = None, folder: str = "search", **search: Any) -> StageContext:
        return context_over(clouds, tmp_path / folder, search, events)

    return make
