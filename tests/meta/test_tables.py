"""Tables that name other things are true: entry points, configs, generated pages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster import entrypoints
from cluster.cli.spec_verbs import spec_schema
from cluster.pipeline.stage import PIPELINE
from cluster.spec.load import load_spec, parse_yaml
from docs.generate import stale_pages

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("stage", list(entrypoints.STAGE_ENTRYPOINTS))
def test_stage_entrypoints_resolve(stage: str) -> None:
    assert callable(entrypoints.load(entrypoints.STAGE_ENTRYPOINTS[stage]))


@pytest.mark.parametrize("module", sorted(set(entrypoints.COMMAND_MODULES.values())))
def test_command_modules_can_be_started(module: str) -> None:
    package = importlib.util.find_spec(module)
    assert package is not None
    if package.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None


def test_pipeline_and_entrypoints_name_the_same_stages_in_order() -> None:
    assert [stage.name for stage in PIPELINE] == list(entrypoints.STAGE_ENTRYPOINTS)


def test_stages_need_only_earlier_stages() -> None:
    seen: set[str] = set()
    for stage in PIPELINE:
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
