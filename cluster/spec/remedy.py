"""Remedies as lines of a spec: how they are written, read back, and compared with the spec that they answer.

Invariant: what `map_line`, `drop_line`, `kind_line` and `written_line` write is YAML that means these very names and
words, be a column's name empty, a number or a word of YAML's own; `advice` reads every `path: value` of a sentence, so
that `in_force` can tell a remedy that the spec follows already.

Covered: paths that begin with a section, scalars, lists and mappings in one line. Not covered: advice in plain words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from cluster.spec.run import RunSpec

PATH = re.compile(rf"\b((?:{'|'.join(RunSpec.model_fields)})(?:\.[A-Za-z_][\w-]*)*)(?:: | to )(?=\S)")
SCALAR = re.compile(r"\"[^\"]*\"|'[^']*'|[\w.+-]*\w")
PROSE = ("a", "an", "another", "one", "the", "what")  # `to the …` says no value
PLAIN = re.compile(r"[A-Za-z_][\w ()/%-]*")


def key(name: str) -> str:
    """A name as YAML reads it inside `{}` and `[]`: in quotes where it would else be something different."""
    plain = PLAIN.fullmatch(name) and name == name.strip() and yaml.safe_load(f"[{name}]") == [name]
    return name if plain else json.dumps(name, ensure_ascii=False)


def drop_line(name: str) -> str:
    """Leave a column out."""
    return f"data.drop_columns: [{key(name)}]"


def kind_line(name: str, kind: str) -> str:
    """Declare a column."""
    return f"data.columns.{name}: {kind}" if re.fullmatch(r"\w+", name) else f"data.columns: {{{key(name)}: {kind}}}"


def written_line(name: str, value: str) -> str:
    """Declare how a column is read, or how its values are written; `value` is YAML."""
    return f"data.columns: {{{key(name)}: {value}}}"


def map_line(name: str, words: Mapping[str, str]) -> str:
    """Replace words of a column."""
    pairs = ", ".join(f"{json.dumps(a, ensure_ascii=False)}: {json.dumps(b, ensure_ascii=False)}"
                      for a, b in words.items())  # fmt: skip
    return f"data.clean.map_values: {{{key(name)}: {{{pairs}}}}}"


def advice(text: str) -> list[tuple[str, Any]]:
    """Every `path: value` (or `path to value`) of a text, in order."""
    found = []
    for match in PATH.finditer(text):
        rest = text[match.end() :]
        end = _closing(rest) if rest[0] in "{[" else len(scalar.group()) if (scalar := SCALAR.match(rest)) else 0
        if not end or rest[:end] in PROSE:
            continue
        try:
            found.append((match.group(1), yaml.safe_load(rest[:end])))
        except yaml.YAMLError:
            continue
    return found


def in_force(text: str, spec: RunSpec) -> list[str]:
    """The advice of a text that the spec follows already, as `path: value`."""
    raw = spec.model_dump(mode="json")
    return [f"{path}: {json.dumps(value)}" for path, value in advice(text) if _holds(value, _at(raw, path))]


def _closing(text: str) -> int:
    """The length of a mapping or list at the start of a text; 0 where it does not end."""
    depth, quote, escaped = 0, "", False
    for place, mark in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = mark == "\\" and quote == '"'
            quote = "" if mark == quote else quote
        elif mark in "\"'":
            quote = mark
        elif mark in "{[":
            depth += 1
        elif mark in "}]":
            depth -= 1
            if not depth:
                return place + 1
    return 0


def _at(raw: Any, path: str) -> Any:
    for part in path.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
    return raw


def _holds(value: Any, current: Any) -> bool:
    """Whether what is there already says `value`: a mapping or a list may say more."""
    if isinstance(value, dict) and isinstance(current, dict):
        return all(name in current and _holds(each, current[name]) for name, each in value.items())
    if isinstance(value, list) and isinstance(current, list):
        return all(each in current for each in value)
    return bool(value == current and isinstance(value, bool) == isinstance(current, bool))
