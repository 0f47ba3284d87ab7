"""Reference pages that are made from the code and its tables: `python -m docs.generate [--check]`.

Invariant: a page is a pure function of the code, so that `--check` can compare it byte for byte.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from pydantic import BaseModel

from cluster import errors
from cluster.cli.app import app
from cluster.spec import resume_rules
from cluster.spec.run import RunSpec
from cluster.spec.serve import ServeSpec
from docs.training_notes import NOTES
from docs.training_rules import RULES, Tests
from serve.doors.http import HEAD_BYTES_MAX
from serve.doors.images import FILES_MAX, PIXELS_MAX
from serve.doors.predict import DECODERS
from serve.doors.rpc import HEALTH, HEALTH_METHODS, INFERENCE, INFERENCE_METHODS, MESSAGE_BYTES_MAX
from serve.observe.metrics import GPU_GAUGES, EndpointMetrics
from serve.observe.monitor import entry, joined
from serve.protocol.errors import GRPC_OF_STATUS, STATUS_MEANINGS, STATUS_OF_CLASS, grpc_code_of, overloaded, status_of
from serve.protocol.limits import Limits
from serve.protocol.statistics import BUCKETS_S, ModelStatistics

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
    text = "{…}" if value and isinstance(value, dict) else str(value)
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
        if topic == "A changed spec":
            lines.append(_changed_keys_table())
        rows = [f"| {rule} | {_tests(tests)} |" for rule, tests in rules.items()]
        lines.append("| rule | tests |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    return "\n".join(lines)


def _changed_keys_table() -> str:
    """Keys of `train` by what a change of them does to a training that has begun."""
    what = {
        "same": "nothing: it cannot change a result",
        "goes on": "the training goes on, and says so",
        "anew": "it starts anew, and says so",
    }
    rows = [
        f"| {', '.join(f'`train.{key}`' for key in rule.keys)} | {what[rule.effect]} | {rule.why} | "
        f"{'goes on' if rule.comparable else 'is another one'} |"
        for rule in resume_rules.RULES
    ]
    rows.append(f"| all others of `train`, `model`, `seed`; the prepared rows | {what['anew']} | | is another one |")
    return "| key | a training | because | a search |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"


def _tests(tests: Tests) -> str:
    """Each file once, as a link, and its tests after it."""
    files = [
        f"[{file}](../../tests/{file}): {', '.join(f'`{name}`' for name in names)}" for file, names in tests.items()
    ]
    return "; ".join(files)


def serving_page() -> str:
    """Keys, metrics, statistics, statuses and limits of an endpoint."""
    return "\n".join(
        [
            NOTE,
            "# Serving: keys, metrics, statuses, limits\n",
            "[serving.md](../serving.md) explains how they work together.\n",
            *_serve_keys(),
            *_metrics(),
            *_statistics(),
            *_statuses(),
            *_limits(),
            *_rpc_methods(),
        ]
    )


def _serve_keys() -> Iterator[str]:
    yield "## Keys\n\nThe `serve` section of the YAML; the types and meanings of its keys are in the spec.\n"
    rows = [
        f"| `{path}` | `{_yaml(default)}` | [{section}](spec.md#{section.lower()}) |"
        for path, default, section in _keys(ServeSpec())
    ]
    yield _rows("key", "default", "section of the spec", rows=rows)


def _keys(spec: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted path, default and class of each key, in the spec's order."""
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, type(spec).__name__


def _metrics() -> Iterator[str]:
    bounds = ", ".join(f"{bound:g}" for bound in BUCKETS_S)
    yield f"## Metrics\n\n`GET /metrics`, in Prometheus' text format. Bounds of the histograms, in seconds: {bounds}.\n"
    rows = []
    for family in _scrape():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        rows.append(f"| `{name}` | {family.type} | {_code(labels)} | {family.documentation} |")
    yield _rows("metric", "type", "labels", "meaning", rows=rows)


def _scrape() -> Iterator[Any]:
    """The families of an endpoint with one version that has answered one request, on one GPU."""
    statistics = _used_statistics()
    batcher = SimpleNamespace(queued_rows=0, oldest_wait_s=0.0)
    model = SimpleNamespace(name=statistics.name, version=statistics.version, statistics=statistics, batcher=batcher)
    repository: Any = SimpleNamespace(name=statistics.name, models={statistics.version: model})
    reading = SimpleNamespace(gpus=[SimpleNamespace(uuid="GPU-0", **dict.fromkeys(GPU_GAUGES, 0))])
    gpus: Any = SimpleNamespace(read=lambda: reading)
    return EndpointMetrics(repository, "0", gpus).collect()


def _used_statistics() -> ModelStatistics:
    statistics = ModelStatistics("M", "1")
    statistics.executed(1, 0, 0, 0)
    statistics.answered(1, 0, time.perf_counter_ns(), None)
    statistics.met_unseen({"column": 1})
    statistics.memory_bytes = {"cpu": 0}
    return statistics


def _statistics() -> Iterator[str]:
    used = _used_statistics()
    raw = used.to_json()
    window = joined({"0": [entry(used)]}, [])[0]
    yield "## Statistics\n"
    yield f"`GET /v2/models[/M[/versions/V]]/stats`, by Triton's extension; an entry of `model_stats` has {_code(raw)}."
    yield f"`inference_stats` has count and nanoseconds of {_code(raw['inference_stats'])};"
    yield f"an entry of `batch_stats`, one a size of engine calls, has {_code(raw['batch_stats'][0])}.\n"
    yield f"`GET /stats`, over the most recent requests of all replicas; an entry a version has {_code(window)};"
    yield f"each of its `replicas` has {_code(window['replicas']['0'])}.\n"


def _statuses() -> Iterator[str]:
    yield '## Statuses and codes\n\nThe body of every error over HTTP is `{"error": "…"}`.\n'
    rows = []
    for status, meaning in STATUS_MEANINGS.items():
        code = f"`{GRPC_OF_STATUS[status]}`" if status in GRPC_OF_STATUS else ""
        rows.append(f"| {status} | {code} | {meaning} |")
    yield _rows("HTTP status", "gRPC code", "meaning", rows=rows)
    yield "An error without a status of its own has that of its class ([errors.md](errors.md)):\n"
    yield _rows("class", "HTTP status", rows=[f"| `{cls.__name__}` | {status} |" for cls, status in STATUS_OF_CLASS])
    yield "A refusal, by its reason:\n"
    rows = []
    for reason in ("queue_full", "deadline", "not_ready", "draining"):
        error = overloaded("", reason=reason, retry_after_s=1)
        rows.append(f"| `{reason}` | {status_of(error)} | `{grpc_code_of(error)}` |")
    yield _rows("reason", "HTTP status", "gRPC code", rows=rows)


def _limits() -> Iterator[str]:
    yield "## Limits\n\nThe first part is `serve/protocol/limits.py`; the `queue` keys set those of the queue.\n"
    meanings, limits = _field_docs(Limits), Limits()
    rows = []
    for field in fields(Limits):
        value = getattr(limits, field.name)
        shown = f"{value >> 20} Mi" if isinstance(value, int) and value >= 1 << 20 else f"{value:g}"
        rows.append(f"| `{field.name}` | {shown} | {meanings[field.name]} |")
    rows += [
        f"| head | {HEAD_BYTES_MAX >> 10} Ki | Bytes of a request's head; Ray Serve's HAProxy takes 16 Ki. |",
        f"| gRPC message | {MESSAGE_BYTES_MAX >> 20} Mi | Bytes of one message. |",
        f"| image files | {FILES_MAX} | Of one form. |",
        f"| pixels | {PIXELS_MAX:,} | Of one image file, by its header, before it is decoded. |",
        f"| decoders | {DECODERS} | Image files that are decoded at a time. |",
    ]
    yield _rows("limit", "value", "meaning", rows=rows)


def _field_docs(cls: type) -> dict[str, str]:
    """Field -> the string below it in the source."""
    definition: Any = ast.parse(inspect.getsource(cls)).body[0]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _rpc_methods() -> Iterator[str]:
    yield "## gRPC methods\n"
    yield f"* `{INFERENCE}`: {_code(INFERENCE_METHODS)}"
    yield f"* `{HEALTH}`: {_code(HEALTH_METHODS)}\n"


def _rows(*head: str, rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |", *rows]) + "\n"


def _code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "spec.md": spec_page,
    "errors.md": errors_page,
    "training-rules.md": training_rules_page,
    "serving.md": serving_page,
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
