"""Tables that name other things are true: entry points, configs, generated pages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import entrypoints
from cluster.cli.runs import spec_schema
from cluster.pipeline.stages import STAGES, Stage
from cluster.spec.load import load_spec, parse_yaml
from cluster.store.stage_facts import StageFacts
from docs.generate import stale_pages

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_names_in_the_table_of_stages_resolve(stage: Stage) -> None:
    assert callable(entrypoints.load(stage.entrypoint))
    assert stage.early is None or callable(entrypoints.load(stage.early))
    facts: Any = entrypoints.load(stage.facts)
    assert issubclass(facts, StageFacts)
    assert facts.stage == stage.name


@pytest.mark.parametrize("name", [entrypoints.TENSORBOARD_ENTRYPOINT, entrypoints.RAY_LIFETIME_ENTRYPOINT])
def test_other_entrypoints_resolve(name: str) -> None:
    assert callable(entrypoints.load(name))


@pytest.mark.parametrize("module", sorted(set(entrypoints.COMMAND_MODULES.values())))
def test_command_modules_can_be_started(module: str) -> None:
    package = importlib.util.find_spec(module)
    assert package is not None
    if package.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None


def test_stages_need_only_earlier_stages() -> None:
    seen: set[str] = set()
    for stage in STAGES:
        assert set(stage.needs) <= seen
        seen.add(stage.name)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_configs_are_valid(config: Path) -> None:
    load_spec(config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_configs_fit_the_published_json_schema(config: Path) -> None:
    raw = parse_yaml(config.read_text(encoding="utf-8"), origin=config.name)
    jsonschema.Draft202012Validator(spec_schema()).validate(raw)


def test_generated_pages_are_fresh() -> None:
    assert stale_pages() == []


def test_compose_and_yaml_files_parse() -> None:
    for path in (ROOT / "docker").glob("*.y*ml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
