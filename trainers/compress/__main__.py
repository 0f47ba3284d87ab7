"""`python -m trainers.compress SOURCE …`: what `manta compress` starts."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from pydantic import ValidationError

from cluster.cli.bundles import compress
from cluster.cli.forward import parse
from cluster.command import emit_json, run_main, write_line
from cluster.errors import RequestError
from cluster.spec.compress import CompressSpec, GraphRecipe
from cluster.telemetry.events import Record, TrialUpdated

RECIPES = "int8_static,int8_static_per_tensor,int8_dynamic,int8_static_percentile,int8_static_excluded"
TEMPORARY = ".compressed"


class LineSink:
    """Shows each decided candidate as a line on stderr."""

    def emit(self, event: Record) -> None:
        if isinstance(event, TrialUpdated) and event.state != "running":
            sys.stderr.write(f"{event.trial}: {event.state}: {event.note}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_main(_print_facts, arguments)


def _print_facts(arguments: list[str]) -> int:
    options = parse(arguments, compress, module="trainers.compress")
    facts = run(options)
    if options.as_json:
        emit_json({"ok": True, **facts})
    else:
        write_line(f"{facts['headline']}\nbundle: {facts['bundle']}")
    return 0


def run(options: SimpleNamespace) -> dict[str, Any]:
    """Compress by the options. Raises MantaError."""
    from trainers.compress.command import compress_source

    spec = spec_of(options)
    source: Path = options.source
    named = source if source.name else source.resolve()  # `.` has no name
    out = options.out or named.with_name(f"{named.stem}{TEMPORARY}")
    with _session(spec.concurrency):
        return compress_source(source, options.data, out, spec, LineSink(), target=options.target_column)


def spec_of(options: SimpleNamespace) -> CompressSpec:
    """The `compress` section that the options mean. Raises RequestError."""
    given = {
        "recipes": (options.recipes or RECIPES).split(","),
        "budget": {"max_drop": options.max_drop},
        "target": {
            "device": options.target,
            "threads": options.threads,
            "batch_size": options.batch_size,
            "minimize": options.minimize,
        },
        "on_inconclusive": options.on_inconclusive,
        "concurrency": options.workers,
    }
    try:
        return CompressSpec.model_validate_json(json.dumps(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RequestError(
            "Cannot compress with these options",
            found=f"{'.'.join(map(str, first['loc']))} is {first['input']!r}",
            rule=str(first["msg"]).removeprefix("Value error, "),
            remedy=f"Recipes are {', '.join(get_args(GraphRecipe))}." if first["loc"][0] == "recipes" else "",
        ) from None


def _session(workers: int) -> AbstractContextManager[Any]:
    if workers == 1:
        return nullcontext()
    from cluster.runtime.session import ray_session

    return ray_session()


if __name__ == "__main__":
    sys.exit(main())
