"""What docs/serving.md says of keys, metrics and paths is so, and docs/reference/serving.md has all of them.

The reference page is made from the code, and tests/meta/test_tables.py holds it fresh. Here a real answer of `/metrics`
and the statuses in the source are compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from cluster.spec.serve import ServeSpec
from serve.observe.metrics import GPU_GAUGES
from serve.protocol.errors import STATUS_MEANINGS, STATUS_OF_CLASS
from tests.unit.serve_tests.conftest import Place
from tests.unit.serve_tests.test_asgi import GOOD, INFER, client

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "reference" / "serving.md").read_text(encoding="utf-8")


def keys(spec: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted paths of keys and of the sections that hold them."""
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        yield f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from keys(value, f"{prefix}{name}.")


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def listed_metrics() -> dict[str, set[str]]:
    """Metric -> its labels, of the reference page."""
    rows = re.findall(r"^\| `(manta_serve_\w+)` \| \w+ \| (.*?) \| ", section(REFERENCE, "Metrics"), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_the_reference_page_lists_every_key() -> None:
    listed = re.findall(r"^\| `([a-z_.]+)` \| `[^`]*` \| \[(\w+)\]", section(REFERENCE, "Keys"), re.MULTILINE)
    sections = {name for name in keys(ServeSpec()) if any(each.startswith(f"{name}.") for each in keys(ServeSpec()))}
    assert {name for name, _ in listed} == set(keys(ServeSpec())) - sections
    spec_page = (ROOT / "docs" / "reference" / "spec.md").read_text(encoding="utf-8")
    for name, where in listed:
        assert f"\n| `{name.rpartition('.')[2]}` | " in section(spec_page, where), f"{where} has no {name}"


def test_every_metric_of_an_endpoint_is_listed_with_its_labels(in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        async with client(place) as http:
            await http.post(INFER, content=GOOD)
            response = await http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        listed = listed_metrics()
        names = set()
        for family in text_string_to_metric_families(response.text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            names.add(name)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == listed[name], name
        assert names | {f"manta_serve_gpu_{name}" for name in GPU_GAUGES} == set(listed)

    in_place(test, pages=True)


def test_every_status_that_is_answered_has_a_meaning() -> None:
    written = re.compile(r"""(?:status=|text_error\(|Answer\(|else |b"|GONE = )([45]\d\d)\b""")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "serve").rglob("*.py")]
    found = {int(status) for text in sources for status in written.findall(text)}
    assert found | {status for _, status in STATUS_OF_CLASS} == set(STATUS_MEANINGS)
    assert len(found) > 8


def test_keys_that_the_page_names_exist() -> None:
    dotted = re.findall(r"`((?:serve|replicas|batching|queue|tensorrt)\.[a-z_]+)(?=[`:])", PAGE)
    named = [name.removeprefix("serve.") for name in dotted]
    named += re.findall(r"`([a-z_]+)(?=: [^`])", PAGE) + re.findall(r"--set ([a-z_.]+)=", PAGE)
    known = set(keys(ServeSpec()))
    short = {name.rpartition(".")[2] for name in known}
    wrong = {name for name in named if name not in known | short}
    assert wrong == {"application"}, "`application: NAME` is metadata of gRPC"
    assert len(set(named)) > 15


def test_metrics_that_the_page_names_exist_and_have_the_labels() -> None:
    named = re.findall(r"`(manta_serve_[a-z_]+)(\*?)(?:\{([a-z_]+)[^}]*\})?`", PAGE)
    listed = listed_metrics()
    for name, star, label in named:
        assert any(each.startswith(name) for each in listed) if star else name in listed, name
        assert not label or label in listed[name], f"{name} has no label {label}"
    assert len({name for name, _, _ in named}) > 8


def page_paths() -> Iterator[tuple[str, str]]:
    """Verb and path of the page's table, with and without what stands in brackets."""
    rows = re.findall(r"^\| (`/.*?) \| (GET|POST) \| ", section(PAGE, "Requests"), re.MULTILINE)
    for cell, verb in rows:
        for path in re.findall(r"`([^`]+)`", cell):
            for whole in {path.replace("[/versions/V]", each) for each in ("", "/versions/1")}:
                yield verb, whole.replace("/M", "/m")


@pytest.mark.parametrize(("verb", "path"), sorted(page_paths()))
def test_paths_that_the_page_lists_are_answered(verb: str, path: str, in_place: Callable[..., Any]) -> None:
    async def test(place: Place) -> None:
        other = "POST" if verb == "GET" else "GET"
        async with client(place) as http:
            assert (await http.request(verb, path)).status_code not in (404, 405, 501)
            assert (await http.request(other, path)).status_code in (403, 405)

    in_place(test, pages=True)


def test_the_table_of_paths_was_found() -> None:
    assert len(list(page_paths())) > 15
