"""Reference pages that are made from the code and its tables: `python -m docs.generate [--check]`.

Invariant: a page is a pure function of the code, so that `--check` can compare it byte for byte.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from cluster import errors
from cluster.cli.app import app
from cluster.spec.run import RunSpec
from docs.training_notes import NOTES
from docs.training_rules import RULES, Tests

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by `make docs`; do not edit. -->\n"


def cli_page() -> str:
    """Every command with its help and options."""
    lines = [NOTE, "# The `manta` command\n"]
    for path, command in _commands(typer.main.get_command(app), "manta"):
        lines.append(f"## `{path}`\n\n{(command.help or '').strip()}\n")
        rows = [row for parameter in command.params if (row := _parameter_row(parameter))]
        if rows:
            lines.append("| argument or option | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    lines.append("`--debug` may stand anywhere and shows the traceback of an error.\n")
    return "\n".join(lines)


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name in children:
        yield from _commands(children[name], f"{path} {name}")


def _parameter_row(parameter: Any) -> str | None:
    if parameter.name == "help":
        return None
    text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
    if parameter.param_type_name == "argument":
        return f"| `{parameter.metavar or parameter.name}` | {text} |"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    default = parameter.default if isinstance(parameter.default, int | float | str | Path) else None
    shown = f" Default: `{default}`." if default not in (None, False, "") else ""
    return f"| {names} | {text}{shown} |"


def spec_page() -> str:
    """Every section of the YAML: keys, types, defaults, meaning."""
    schema = RunSpec.model_json_schema()
    lines = [NOTE, "# The spec\n", f"{schema['description']}\n", _table(schema)]
    for name in sorted(schema["$defs"]):
        definition = schema["$defs"][name]
        lines.append(f"## {name}\n\n{definition.get('description', '')}\n")
        if definition.get("properties"):
            lines.append(_table(definition))
    return "\n".join(lines)


def _table(definition: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value in definition.get("properties", {}).items():
        required = key in definition.get("required", [])
        default = "required" if required else f"`{_yaml(value.get('default'))}`"
        text = value.get("description", "").replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{key}` | {_type(value)} | {default} | {text} |")
    return "\n".join(rows) + "\n"


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    for key in ("oneOf", "anyOf"):
        if key in value:
            return " or ".join(dict.fromkeys(_type(item) for item in value[key]))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}" if value.get("items") else "list"
    limits = [
        f"{sign} {value[key]}"
        for key, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
        if key in value
    ]
    name = {"null": "null", "object": "mapping"}.get(value.get("type", "any"), value.get("type", "any"))
    return f"{name} {', '.join(limits)}".strip()


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value) if not isinstance(value, dict) else "{…}"
    return text.replace("|", "\\|")


def errors_page() -> str:
    """The error tree with codes and exit codes."""
    lines = [NOTE, "# Errors\n", "| code | exit | class | meaning |", "| --- | --- | --- | --- |"]
    for cls in errors.all_error_classes():
        text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        lines.append(f"| `{cls.code}` | {cls.exit_code} | `{cls.__name__}` | {text} |")
    return "\n".join(lines) + "\n"


def training_rules_page() -> str:
    """The mechanisms of training in detail: notes of each topic, then its rules with the tests that hold them."""
    lines = [
        NOTE,
        "# Training rules\n",
        "What [training](../training.md) explains, in detail. Each rule names the tests that hold it, which a common\n"
        "shortcut fails; files are below `tests/`.\n",
    ]
    for topic, rules in RULES.items():
        lines.append(f"## {topic}\n")
        if topic in NOTES:
            lines.append(f"{NOTES[topic].strip(chr(10))}\n")
        rows = [f"| {rule} | {_tests(tests)} |" for rule, tests in rules.items()]
        lines.append("| rule | tests |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(lines)


def _tests(tests: Tests) -> str:
    """Each file once, as a link, and its tests after it."""
    files = [
        f"[{file}](../../tests/{file}): {', '.join(f'`{name}`' for name in names)}" for file, names in tests.items()
    ]
    return "; ".join(files)


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "spec.md": spec_page,
    "errors.md": errors_page,
    "training-rules.md": training_rules_page,
}


def stale_pages() -> list[str]:
    """Names of pages that differ from what the code would make."""
    return [
        name
        for name, make in PAGES.items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text(encoding="utf-8") != make()
    ]


def main() -> int:
    """Write the pages, or compare them with `--check`."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate")
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        stale = stale_pages()
        if stale:
            sys.stderr.write(f"Stale: {', '.join(stale)} in docs/reference. Run `make docs` and commit the result.\n")
        return bool(stale)
    REFERENCE.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
