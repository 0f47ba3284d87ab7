"""Whether arguments fit the signatures that pybind11 writes into docstrings."""

from __future__ import annotations

import re
from typing import Any

PARAMETER = re.compile(r"^(?P<name>\w+): (?P<type>[\w.\[\], ]+?)(?: = (?P<default>.*))?$")


def accepts(trt: Any, signatures: list[str], arguments: tuple[Any, ...]) -> bool:
    """Whether one of the overloads takes these positional arguments (without self)."""
    return any(_fits(trt, _parameters(one), arguments) for one in signatures)


def _parameters(signature: str) -> list[tuple[str, bool]]:
    """`(type, has a default)` of each parameter after self."""
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    found = []
    for part in _split(inside)[1:]:
        match = PARAMETER.match(part.strip())
        assert match is not None, part
        found.append((match.group("type"), match.group("default") is not None))
    return found


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([<") - (letter in ")]>")
        if letter == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]] if text.strip() else []


def _fits(trt: Any, parameters: list[tuple[str, bool]], arguments: tuple[Any, ...]) -> bool:
    needed = sum(not has_default for _, has_default in parameters)
    if not needed <= len(arguments) <= len(parameters):
        return False
    return all(_is(trt, value, kind) for value, (kind, _) in zip(arguments, parameters, strict=False))


def _is(trt: Any, value: Any, kind: str) -> bool:
    simple: dict[str, type | tuple[type, ...]] = {
        "str": str,
        "bool": bool,
        "tuple": tuple,
        "list": list,
        "typing.SupportsInt": int,
        "typing_extensions.Buffer": (bytes, bytearray, memoryview),
        "Dims": (tuple, list),
    }
    if kind in simple:
        return isinstance(value, simple[kind])
    return isinstance(value, getattr(trt, kind))
