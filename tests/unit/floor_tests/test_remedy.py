"""Lines that are printed are YAML that means what was said; what a remedy says is valid and not in force."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import SpecError
from cluster.spec.load import override_spec, parse_spec
from cluster.spec.remedy import advice, drop_line, in_force, kind_line, map_line
from cluster.spec.run import RunSpec
from cluster.spec.suggest import all_paths

ROOT = Path(__file__).parents[3]
SPECS = [
    f"version: 1\ndata: {{source: {source}, balance: {{method: over}}}}\nmodel: {model}\nserve: {{device: cuda}}\n"
    for source in ("{kind: csv, path: t.csv}", "{kind: image_folder, path: p}")
    for model in ("{family: mlp}", "{family: timm, name: n}", "{family: transformers, name: n}")
]
HOLE = "HOLE"  # of an f-string
NAMES = ["a", "", "two words", "no", "null", "1", "1e5", "a: b", "é", "a,b", "[x]", "'", '"', " a", "#", "y}", "~"]


def read(line: str) -> Any:
    path, _, value = line.partition(": ")
    return path, yaml.safe_load(value)


@pytest.mark.parametrize("name", NAMES)
def test_lines_mean_the_very_name(name: str) -> None:
    assert read(drop_line(name)) == ("data.drop_columns", [name])
    assert read(map_line(name, {name: name, "b.": "b"})) == ("data.clean.map_values", {name: {name: name, "b.": "b"}})
    path, value = read(kind_line(name, "text"))
    assert {path: value} in ({f"data.columns.{name}": "text"}, {"data.columns": {name: "text"}})
    for line in (drop_line(name), map_line(name, {name: name})):
        assert advice(f"Look: {line}, or give more rows.") == [read(line)]


def test_advice_is_read_from_sentences() -> None:
    text = "Set data.split.stratify: true, raise data.split.test, or set serve.port to 0; search: null. A data: b."
    assert advice(text) == [("data.split.stratify", True), ("serve.port", 0), ("search", None), ("data", "b")]


def test_what_a_spec_says_already_is_in_force() -> None:
    spec = parse_spec(
        "version: 1\ndata: {source: {kind: csv, path: t.csv}, drop_columns: [a, b], split: {stratify: true},\n"
        "  clean: {map_values: {y: {u: v, w: x}}}, columns: {c: text}}\n"
    )
    for line in (
        "data.split.stratify: true", "data.drop_columns: [b]", "data.clean.map_values: {y: {u: v}}", "search: null",
        "data.columns.c: text",
    ):  # fmt: skip
        assert len(in_force(f"Set {line}.", spec)) == 1, line
    for line in (
        "data.split.stratify: false", "data.drop_columns: [c]", "data.clean.map_values: {y: {u: z}}", "serve: null",
        "data.columns.d: text", "train.epochs: true",
    ):  # fmt: skip
        assert in_force(f"Set {line}.", spec) == [], line


GUARDED = {
    "data.clean.infinite: missing": "raised where the rule is `error`",
    "compress.distill.feature_weight: 0": "features are matched where it is above 0",
    "compress.prune.tracer: own": "the other tracer says it",
    "compress: null": "compression runs where it is not null",
    "compress.dense_rival: false": "narrower networks are made for distill or a rival",
    "data.balance: null": "rows are balanced where it is not null",
    "data.balance.method: smotenc": "raised for the other methods",
    "data.encode.category: target": "raised where a category is encoded otherwise",
    "data.balance.method: smote": "raised for smotenc",
    "data.encode.text: word_counts": "token ids come of the other value",
    "data.balance.method: class_weights": "raised for methods that make rows",
    "data.balance.method: over": "raised for methods that make rows",
    "data.balance.neighbors: HOLE": "one fewer than the rows, which are no more than it",
    "data.clean.clip_iqr: 1.5": "quality/fail_on.py counts it as followed",
    "data.clean.drop_duplicates: true": "quality/fail_on.py counts it as followed",
    'data.balance: {"method": "class_weights"}': "quality/fail_on.py counts it as followed",
    "data.source.encoding: utf-16": "with it the mark of UTF-16 is read",
    'data.source.size: ["height", "width"]': "with a size all images have it",
    "data.columns.HOLE: category": "a declared column is not inferred",
    'data.source.thousands: ","': "raised where there is no separator",
    'data.source.decimal: ","': "raised where neither mark is set",
    "data.source.header: false": "raised where the first line was taken for names",
    "data.source.quoted_missing: missing": "raised where words in quotes are values",
    "data.encode.text: token_ids": "said where it is another value",
    "serve.host: 0.0.0.0": "warned of for loopback addresses",
    "serve: null": "deploying runs where it is not null",
    "data.split.by_hash: true": "said where it is false",
    "data.source.missing: HOLE": "words that the spec takes for missing are none to it",
    "data.source.delimiter: HOLE": "it is the mark that the header has instead",
    "data.source.sample: HOLE": "the other of the two",
    "data.source.quote: null": "raised for a name between quotes over two lines",
    "data.split.train: rest": "raised for numbers of rows",
    "data.split.stratify: true": "said where it is false",
    "data.encode.category: hash": "raised for the other encodings",
    "data.task: regression": "raised for classes that are numbers",
    "data.task: classification": "raised where regression is asked for",
    "data.split.stratify: false": "raised where rows are stratified",
    "export.opset: HOLE": "said for a graph of a lower one",
    'serve.tensorrt.axes: {"HOLE": [64, 256]}': "raised for an axis that is not there",
    "export.optimize.HOLE: false": "raised by what is true",
    "export.optimize.onnxslim: false": "raised by what is true",
    "compress.target.device: gpu": "graphs for a GPU have these pairs",
    "compress.target.device: cpu": "raised for a session on a GPU",
    "train.deterministic: false": "raised where it is true",
    "train.workers: HOLE": "what there is room for, where it asks for more",
    "model.family: mlp": "the cnn says it",
    "model.pretrained: false": "said where it is true",
    "model.family: timm": "torchvision says it",
    "model.family: transformer": "transformers says it",
    "search: null": "the search says it",
    "serve.engine: onnxruntime": "the other engine says it",
    "serve.allow_non_finite: true": "raised where it is false",
    "data.source.header: true": "raised for `auto`",
    "data.source.skip_lines: HOLE": "the lines before the header, where it says fewer",
    "data.target_transform: yeo_johnson": "raised for log1p",
    "data.select.k: HOLE": "raised where it asks for more features than there are",
    "data.encode.number: quantile": "nothing is infinite by it, and quality/fail_on.py counts it as followed",
}
"""Advice of the house -> why it is never given to a spec that follows it: a new one comes here with its reason. Errors
of the data room are tried besides: tests/unit/data_tests/making.py asks it of each that a test raises."""


FACTS = {
    "compress.prune.tracer: torch_pruning",
    "export.optimize.onnxslim: true",
    "model.family: HOLE",
    "model.family: search",
    "model.family: torchvision",
    "model.family: transformers",
}
"""What a text says of the spec, and no advice."""
MAKERS = ("cluster/spec/remedy.py",)  # of lines


def _text(node: ast.AST) -> str:
    """The text of an expression, with holes where values go; of alternatives all."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(HOLE if isinstance(part, ast.FormattedValue) else _text(part) for part in node.values)
    parts = [_text(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return ("" if isinstance(node, ast.BinOp) else " | ").join(parts)


@cache
def remedies() -> tuple[tuple[str, str], ...]:
    """(file, text) of every text in the house that is no docstring: remedies are among them, however they are made."""
    return tuple(found for room in ("cluster", "trainers", "serve") for found in _texts(room))


def _texts(room: str) -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        whole: list[Any] = [ast.parse(path.read_text(encoding="utf-8"))]
        while whole:
            node = whole.pop()
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, ast.BinOp | ast.JoinedStr | ast.Constant):
                yield name, _text(node)
            else:
                whole += ast.iter_child_nodes(node)


def test_every_remedy_names_keys_that_exist() -> None:
    section, names = "|".join(RunSpec.model_fields), all_paths()
    free = ("data.columns.", "data.clean.map_values.", "search.space.")
    for file, text in remedies():
        if text.startswith("python -m "):
            continue
        for path in re.findall(rf"(?<![\w./-])(?:{section})(?:\.[a-z_A-Z]\w*)+", text):
            known = [name for name in names if re.fullmatch(path.replace(".", "[.]").replace(HOLE, "[a-z_]+"), name)]
            assert known or path.startswith(free) or " " not in text, f"{file}: {path}"


def test_every_value_that_a_remedy_names_is_known_to_be_none_that_is_in_force() -> None:
    found = {
        f"{path}: {_line(value)}"
        for file, text in remedies()
        for path, value in advice(text)
        if ("." in path or value is None) and file not in MAKERS
    }
    assert found - FACTS == set(GUARDED)
    assert found >= FACTS


def _line(value: Any) -> str:
    return value if isinstance(value, str) and value.isascii() and value != "," else json.dumps(value)


@pytest.mark.parametrize("line", sorted(each for each in GUARDED if HOLE not in each))
def test_every_value_that_a_remedy_names_is_one_that_its_key_takes(line: str) -> None:
    ((path, value),) = advice(line)
    changes: list[dict[str, Any]] = [{path: value}]
    if path == "data.source.size":
        changes = [{path: [8, 8]}]
    if path == "model.family":
        changes = [{"model": {"family": value}}, {"model": {"family": value, "name": "n"}}]
    tried = []
    for base in SPECS:
        for change in changes:
            try:
                changed = override_spec(parse_spec(base), change)
            except SpecError as error:
                tried.append(error.found)
                continue
            assert in_force(line, changed) or path == "data.source.size"
            return
    pytest.fail(f"no spec takes {line}: {tried}")
