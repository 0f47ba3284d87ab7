"""YAML text -> plain values, as PyYAML reads it with two differences.

Invariant: no object is built from a text; a duplicate key is an error and not the last one's value.

Covered: YAML 1.2 floats (`3e-3` is a number), duplicate keys, keys that are no texts. PyYAML is imported when a text
is read: a training request that is made in code needs none. Not covered: what the values mean (load.py).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

MERGE_TAG = "tag:yaml.org,2002:merge"
FLOAT_TAG, FLOAT = "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$")


def plain_values(text: str) -> Any:
    """The values of a YAML text; no objects are built. Raises ValueError that says where and why it is not YAML."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        context = f" ({error.context})" if error.context else ""
        raise ValueError(f"{where}{error.problem}{context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except LookupError as error:  # `!!bool maybe`: PyYAML looks the word up
        raise ValueError(f"a tag does not fit its value: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def typename(value: Any) -> str:
    """What a value is, for people."""
    names = {list: "a list", str: "a text", int: "a number", float: "a number", type(None): "empty"}
    return names.get(type(value), type(value).__name__)


@cache
def _loader() -> Any:
    """PyYAML's SafeLoader with the differences."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
    Loader.add_implicit_resolver(FLOAT_TAG, FLOAT, list("-+.0123456789"))
    return Loader


def _mapping(loader: Any, node: Any) -> dict[Any, Any]:
    from yaml.constructor import ConstructorError

    own: list[Any] = []
    for key_node, _ in node.value:
        if key_node.tag == MERGE_TAG:
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | None):
            problem = f"a key must be a text, found {typename(key)}"
            raise ConstructorError(None, None, problem, key_node.start_mark)
        if key in own:
            raise ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
        own.append(key)
    loader.flatten_mapping(node)  # `<<: *other`: the other's keys come first, so that own ones replace them
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }
