"""YAML text -> `RunSpec`, with every broken rule reported at once.

Invariant: a spec that loads is complete and typed; one that does not raises a single `SpecError` whose
`problems` name each dotted path, the value found, the rule and the nearest valid key.

Covered: YAML, duplicate keys, `--set` overrides, strict validation. Not covered: rules that tie several sections
together (rules.py), `auto` values (resolve.py), whether files exist (the check stage).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cluster.errors import SpecError
from cluster.spec.base import StrictSpec
from cluster.spec.run import RunSpec
from cluster.spec.suggest import models_of, nearest_key
from cluster.spec.yaml_text import plain_values, typename

Section = TypeVar("Section", bound=StrictSpec)

MAX_SPEC_BYTES = 1 << 20  # a spec is written by a person: a megabyte is a wrong file


def load_spec(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read, override and validate a spec file. Raises SpecError with all problems."""
    return parse_spec(read_text(path), overrides, origin=str(path))


def parse_spec(text: str, overrides: Sequence[str] = (), *, origin: str = "<text>") -> RunSpec:
    """The same for a text. `origin` names it in messages."""
    raw = parse_yaml(text, origin=origin)
    return validate_spec(apply_overrides(raw, overrides), origin=origin)


def read_text(path: Path) -> str:
    """The text of a spec file. Raises SpecError for a file that is missing, a folder, binary, empty or unreadable."""
    attempted = f"Cannot read the spec {path}"
    remedy = "Give the path of a YAML file; configs/ has one for each idea."
    if path.is_dir():
        raise SpecError(attempted, found="it is a directory", remedy=remedy)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        hint = f" Did you mean {path.with_name(near[0])}?" if near else ""
        raise SpecError(attempted, found="there is no such file", remedy=remedy + hint) from None
    except PermissionError:
        raise SpecError(attempted, found="permission denied", remedy="Give this user the right to read it.") from None
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError(attempted, found=f"it has {len(data):,} bytes", rule="a spec is at most 1 MiB", remedy=remedy)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(
            attempted, found=f"byte {error.start} is not UTF-8 text: the file is binary", remedy=remedy
        ) from None
    if "\x00" in text:
        raise SpecError(attempted, found="it holds NUL bytes: the file is binary", remedy=remedy)
    if not text.strip():
        raise SpecError(attempted, found="the file is empty", remedy=remedy)
    return text


def parse_yaml(text: str, *, origin: str) -> dict[str, Any]:
    """YAML text -> plain dict. Raises SpecError for bad YAML, duplicate keys and other top levels than a mapping."""
    attempted = f"Cannot read the spec {origin}"
    try:
        raw = plain_values(text)
    except ValueError as error:
        raise SpecError(attempted, found=f"it is not valid YAML: {error}", remedy="Mend that line.") from None
    if not isinstance(raw, dict):
        raise SpecError(
            attempted,
            found=f"the top level is {typename(raw)}",
            rule="a spec is a mapping with `version: 1` and a `data` section",
            remedy="Start from configs/quickstart.yaml.",
        )
    return raw


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `dotted.path=YAML value` overrides to a copy. Raises SpecError for a malformed one."""
    result = json.loads(json.dumps(raw, default=str))
    for item in overrides:
        path, equals, value = item.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise SpecError(
                f"Cannot apply --set {item!r}",
                found="it is not of the form path=value",
                remedy="Write it like --set train.optimizer.learning_rate=3e-3.",
            )
        try:
            set_path(result, keys, plain_values(value))
        except ValueError as error:
            raise SpecError(
                f"Cannot apply --set {item!r}",
                found=f"the value is not valid YAML: {error}",
                remedy="Put a text with special characters into quotes: --set 'data.target=\"a: b\"'.",
            ) from None
    return result


def set_path(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested key, making the mappings on the way (a null or missing section becomes one)."""
    for key in keys[:-1]:
        if not isinstance(raw.get(key), dict):
            raw[key] = {}
        raw = raw[key]
    raw[keys[-1]] = value


def override_spec(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """A copy of a spec with dotted paths set (a trial's parameters). Raises SpecError as loading does."""
    raw = spec.model_dump(mode="json")
    for path, value in values.items():
        set_path(raw, path.split("."), value)
    return validate_spec(raw, origin="overrides " + ", ".join(values))


def override_section(
    section: Section, values: Mapping[str, Any], overrides: Sequence[str] = (), *, attempted: str
) -> Section:
    """A copy of one section with values by dotted path (null: as it is), then with `--set` overrides, paths relative
    to it. Raises SpecError as loading does, its first words `attempted`.
    """
    raw = section.model_dump(mode="json")
    for path, value in values.items():
        if value is not None:
            set_path(raw, path.split("."), value)
    raw = apply_overrides(raw, overrides)
    return _validate(type(section), raw, attempted)


def validate_spec(raw: Mapping[str, Any], *, origin: str = "<values>") -> RunSpec:
    """Plain values -> RunSpec. Raises one SpecError that lists every problem."""
    return _validate(RunSpec, raw, f"Cannot use the spec {origin}")


def _validate(model: type[Section], raw: Mapping[str, Any], attempted: str) -> Section:
    try:
        return model.model_validate_json(json.dumps(raw))  # JSON mode: strict, yet lists become tuples
    except ValidationError as error:
        found = [item for item in error.errors(include_url=False) if not _follows(item, error)]
        unique = _one_each([_problem(item, raw, model) for item in found])
    raise spec_error(attempted, unique)


def _follows(item: Any, error: ValidationError) -> bool:
    """A list of wrong items alone is also too short for pydantic, which counts the right ones."""
    place = item["loc"]
    others = (other["loc"] for other in error.errors(include_url=False))
    return bool(
        item["type"] == "too_short" and any(len(at) > len(place) and at[: len(place)] == place for at in others)
    )


def spec_error(attempted: str, problems: Sequence[Mapping[str, Any]]) -> SpecError:
    """The error that lists every problem."""
    return SpecError(
        attempted,
        found=f"{len(problems)} problem{'s' if len(problems) != 1 else ''}:\n"
        + "\n".join(f"  {item['text']}" for item in problems),
        remedy="Mend these keys; `manta schema` prints the whole format.",
        details={"problems": [dict(item) for item in problems]},
    )


def problem(path: str, value: Any, rule: str, *, nearest: str | None = None, among: Iterable[str] = ()) -> dict:
    """One broken rule, in the form of those that validation finds. `among`: names of which the nearest is meant."""
    if close := difflib.get_close_matches(str(value), list(among), n=1):
        nearest = close[0]
    text = f"{path}: {rule}, found {_short(value)}" + (f"; did you mean {nearest}?" if nearest else "")
    return {"path": path, "value": _short(value), "rule": rule, "nearest": nearest, "text": text}


def _one_each(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One problem a path: the members of a union (`auto` or a number) each complain, and are joined by "or"."""
    joined: dict[str, dict[str, Any]] = {}
    for problem in problems:
        first = joined.setdefault(problem["path"], problem)
        if problem["rule"] not in first["rule"]:
            rule = f"{first['rule']} or {problem['rule'].removeprefix('must be ')}"
            text = first["text"].replace(first["rule"], rule, 1)
            joined[problem["path"]] = {**first, "rule": rule, "text": text}
    return list(joined.values())


def _problem(item: ErrorDetails, raw: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """One pydantic error as path, value, rule and nearest key, with union tags taken out of the path."""
    path = _path_in(raw, item["loc"], missing=item["type"] == "missing")
    value = None if item["type"] == "missing" else item["input"]
    if item["type"] == "union_tag_invalid":  # the tag is what is wrong, not the mapping around it
        tag = item["ctx"]["discriminator"].strip("'")
        path, value = [*path, tag], item["ctx"]["tag"]
    nearest = None
    if item["type"] == "extra_forbidden":
        rule = "unknown key"
        nearest = nearest_key(path, _fields_at(path[:-1], raw, model), model)
    elif item["type"] == "missing":
        rule = "this key is required"
    else:
        rule = _plain_rule(item)
    dotted = ".".join(map(str, path)) or "(top level)"
    text = f"{dotted}: {rule}"
    if item["type"] not in ("missing", "extra_forbidden"):
        text += f", found {_short(value)}{_hint(item['type'], path, value)}"
    if nearest:
        text += f"; did you mean {nearest}?"
    return {"path": dotted, "value": _short(value), "rule": rule, "nearest": nearest, "text": text}


def _hint(kind: str, path: Sequence[str | int], value: Any) -> str:
    """What other tools' writing is called here."""
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return f'; a name that is a number stands in quotes: "{value}"'
    if value is None and path[-1:] == ["header"]:
        return "; a file without a header line is header: false"
    return ""


def _plain_rule(item: ErrorDetails) -> str:
    """Pydantic's sentence in the words of a spec: `must be …`."""
    if item["type"] == "union_tag_invalid":
        return f"must be one of {item['ctx']['expected_tags'].replace(chr(39), '')}"
    if item["type"] == "union_tag_not_found":
        return f"the key {item['ctx']['discriminator'].strip(chr(39))} is required"
    if item["type"] in ("model_type", "dict_type"):
        return "must be a mapping"
    message = item["msg"].removeprefix("Value error, ")
    return re.sub(r"^(Input|String|Tuple|Dictionary|List) should ", "must ", message)


def _path_in(raw: Any, loc: Sequence[str | int], *, missing: bool) -> list[str | int]:
    """Keep the parts of `loc` that name something in `raw`; the rest are union tags of pydantic."""
    path: list[str | int] = []
    node = raw
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (isinstance(node, Mapping) and part in node) or (
            isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int) and part < len(node)
        ):
            path.append(part)
            node = _child(node, part)
        elif last and missing:
            path.append(part)
    return path


def _fields_at(path: Sequence[str | int], raw: Mapping[str, Any], root: type[BaseModel]) -> list[str]:
    """Valid keys of the mapping at `path`, chosen among a union's members by its tag where it has one."""
    models: list[type[BaseModel]] = [root]
    node: Any = raw
    for part in path:
        node = _child(node, part)
        nested = [models_of(model.model_fields[str(part)].annotation) for model in models if part in model.model_fields]
        models = [model for group in nested for model in group]
        tagged = [model for model in models if isinstance(node, Mapping) and _has_tag(model, node)]
        models = tagged or models
    return sorted({name for model in models for name in model.model_fields})


def _child(node: Any, part: str | int) -> Any:
    if isinstance(node, Mapping):
        return node[part]
    return node[part] if isinstance(node, list) and isinstance(part, int) else None


def _has_tag(model: type[BaseModel], node: Mapping[str, Any]) -> bool:
    """Whether a union member's one-value literal (`kind`, `family`) equals the mapping's."""
    for tag in ("kind", "family", "name"):
        field = model.model_fields.get(tag)
        values = get_args(field.annotation) if field else ()
        if len(values) == 1 and node.get(tag) == values[0]:
            return True
    return False


def _short(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _siblings(path: Path) -> list[str]:
    try:
        return [item.name for item in path.parent.iterdir()]
    except OSError:
        return []
