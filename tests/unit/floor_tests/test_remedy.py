"""Lines that are printed are YAML that means what was said; what a remedy says is valid and not in force."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
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
    "cluster/bundle/transforms/columns.py data.clean.infinite: missing": "raised where the rule is `error`",
    "trainers/compress/features.py compress.distill.feature_weight: 0": "features are matched where it is above 0",
    "trainers/compress/prune/torch_pruning.py compress.prune.tracer: own": "the other tracer says it",
    "trainers/compress/rows.py compress: null": "compression runs where it is not null",
    "trainers/compress/students.py compress.dense_rival: false": "narrower networks are made for distill or a rival",
    "trainers/data/fit/balance.py data.balance: null": "rows are balanced where it is not null",
    "trainers/data/fit/balance.py data.balance.method: smotenc": "raised for the other methods",
    "trainers/data/fit/balance.py data.encode.category: target": "raised where a category is encoded otherwise",
    "trainers/data/fit/balance.py data.balance.method: smote": "raised for smotenc",
    "trainers/data/fit/balance.py data.encode.text: word_counts": "token ids come of the other value",
    "trainers/data/fit/balance.py data.balance.method: class_weights": "raised for methods that make rows",
    "trainers/data/fit/balance.py data.balance.neighbors: HOLE": "one fewer than the rows, which are no more than it",
    "trainers/data/quality/rules.py data.clean.infinite: missing": "gate.py counts it as followed",
    "trainers/data/quality/rules.py data.clean.clip_iqr: 1.5": "gate.py counts it as followed",
    "trainers/data/quality/rules.py data.clean.drop_duplicates: true": "gate.py counts it as followed",
    'trainers/data/quality/rules.py data.balance: {"method": "class_weights"}': "gate.py counts it as followed",
    "trainers/data/read/files.py data.source.encoding: utf-16": "with it the mark of UTF-16 is read",
    'trainers/data/read/images.py data.source.size: ["height", "width"]': "with a size all images have it",
    "trainers/data/read/infer.py data.columns.HOLE: category": "a declared column is not inferred",
    'trainers/data/read/infer.py data.source.thousands: ","': "raised where there is no separator",
    'trainers/data/read/reading.py data.source.thousands: ","': "raised where neither mark is set",
    'trainers/data/read/reading.py data.source.decimal: ","': "raised where neither mark is set",
    "cluster/spec/compress.py compress: null": "a budget is read where it is not null",
    "cluster/spec/rules.py data.encode.text: token_ids": "said where it is another value",
    "serve/deployments/endpoint.py serve.host: 0.0.0.0": "warned of for loopback addresses",
    "serve/deployments/stages.py serve: null": "deploying runs where it is not null",
    "trainers/data/stream/prepare.py data.split.by_hash: true": "said where it is false",
    "trainers/data/quality/rules.py data.source.missing: HOLE": "words that the spec takes for missing are none to it",
    "trainers/data/read/table_files.py data.source.delimiter: HOLE": "it is the mark that the header has instead",
    "trainers/data/read/text_files.py data.source.sample: HOLE": "the other of the two",
    "trainers/data/read/table_files.py data.source.quote: null": "raised for a name between quotes over two lines",
    "trainers/data/splits.py data.split.train: rest": "raised for numbers of rows",
    "trainers/data/split_classes.py data.split.stratify: true": "said where it is false",
    "trainers/data/stream/columns.py data.encode.category: hash": "raised for the other encodings",
    "trainers/data/targets.py data.task: regression": "raised for classes that are numbers",
    "trainers/data/targets.py data.task: classification": "raised where regression is asked for",
    "trainers/data/targets.py data.split.stratify: false": "raised where rows are stratified",
    "trainers/export/bfloat16.py export.opset: HOLE": "said for a graph of a lower one",
    "trainers/export/graph_file.py export.opset: HOLE": "it is another one than asked for",
    'trainers/export/node_engine.py serve.tensorrt.axes: {"HOLE": [64, 256]}': "raised for an axis that is not there",
    "trainers/export/optimize.py export.optimize.HOLE: false": "raised by what is true",
    "trainers/export/optimize.py export.optimize.onnxslim: false": "raised by what is true",
    "trainers/export/precision.py compress.target.device: gpu": "graphs for a GPU have these pairs",
    "trainers/export/session.py compress.target.device: cpu": "raised for a session on a GPU",
    "trainers/loop/deterministic.py train.deterministic: false": "raised where it is true",
    "trainers/models/cnn.py model.family: mlp": "the cnn says it",
    "trainers/models/transformer.py model.family: mlp": "the transformer says it",
    "trainers/models/zoo.py model.pretrained: false": "said where it is true",
    "trainers/models/zoo.py model.family: timm": "torchvision says it",
    "trainers/models/zoo.py model.family: transformer": "transformers says it",
    "trainers/models/zoo.py model.family: mlp": "networks of images say it",
    "trainers/search/stage.py search: null": "the search says it",
    "serve/deployments/stages.py compress: null": "raised where a variant is asked for",
    "serve/engines/tensorrt.py serve.engine: onnxruntime": "the other engine says it",
    "serve/model.py serve.allow_non_finite: true": "raised where it is false",
}
"""Advice of the house -> why it is never given to a spec that follows it. Errors of the data room are tried besides:
tests/unit/data_tests/making.py asks it of each that a test raises."""


FACTS = {
    "cluster/runtime/extras.py compress.prune.tracer: torch_pruning",
    "cluster/runtime/extras.py export.optimize.onnxslim: true",
    "cluster/runtime/extras.py model.family: HOLE",
    "cluster/spec/search_rules.py model.family: search",
    "trainers/compress/prune/torch_pruning.py compress.prune.tracer: torch_pruning",
    "trainers/export/session.py compress.target.device: gpu",
    "trainers/models/zoo.py model.family: torchvision",
    "trainers/models/zoo.py model.family: transformers",
}
"""What a text says of the spec, and no advice."""
MAKERS = ("cluster/spec/remedy.py",)


def _text(node: ast.AST) -> str:
    """The text of an expression, with holes where values go; of alternatives all."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(HOLE if isinstance(part, ast.FormattedValue) else _text(part) for part in node.values)
    parts = [_text(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return ("" if isinstance(node, ast.BinOp) else " | ").join(parts)


def remedies() -> Iterator[tuple[str, str]]:
    """(file, text) of every text in the house that is no docstring: remedies are among them, however they are made."""
    for room in ("cluster", "trainers", "serve"):
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
        f"{file} {path}: {_line(value)}"
        for file, text in remedies()
        for path, value in advice(text)
        if ("." in path or value is None) and file not in MAKERS
    }
    assert found - FACTS == set(GUARDED)
    assert found >= FACTS


def _line(value: Any) -> str:
    return value if isinstance(value, str) and value.isascii() and value != "," else json.dumps(value)


@pytest.mark.parametrize("line", sorted({each.partition(" ")[2] for each in GUARDED if HOLE not in each}))
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
