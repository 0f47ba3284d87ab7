"""docs/serving.md lists every knob of the `serve` section with its default, and every metric, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from cluster.spec.serve import ServeSpec
from serve.observe.metrics import GPU_GAUGES
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import GOOD, INFER, client

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")


def knobs(spec: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path and default as YAML writes it, in the spec's order."""
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from knobs(value, f"{prefix}{name}.")
        else:
            words = {None: "null", True: "true", False: "false"}
            known = value is None or isinstance(value, bool)
            yield f"{prefix}{name}", words[value] if known else f"{value:g}" if isinstance(value, float) else str(value)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_knob_is_listed_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]*)` \|", section("Knobs"), re.MULTILINE))
    assert listed == dict(knobs(ServeSpec()))


def test_every_metric_is_listed_and_has_the_labels_that_are_told(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        async with client(place) as http:
            await http.post(INFER, content=GOOD)
            response = await http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(response.text))
        names = {
            f"{family.name}_total" if family.type == "counter" else family.name
            for family in families
            if not family.name.startswith("manta_serve_gpu_")
        }
        names |= {f"manta_serve_gpu_{name}" for name in GPU_GAUGES}
        assert names == set(listed_metrics())
        for family in families:
            for sample in family.samples:
                labels = set(sample.labels) - {"outcome", "rows", "le", "column"}
                per_version = family.name not in ("manta_serve_replica_up",)
                assert labels == ({"model", "version", "replica"} if per_version else {"model", "replica"}), family.name

    in_place(test, pages=True)


def listed_metrics() -> Iterator[str]:
    for cell in re.findall(r"^\| (`manta_serve_.*?) \| ", section("Metrics"), re.MULTILINE):
        for word in re.findall(r"`([^`]+)`", cell):
            name = re.sub(r"\{[a-z]+\}$", "", word)
            match = re.fullmatch(r"(.*)\{([a-z_, ]+)\}(.*)", name)
            yield from (match[1] + each.strip() + match[3] for each in match[2].split(",")) if match else (name,)
