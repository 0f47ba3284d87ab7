"""Code of the three packages that nothing calls: `python .ci/dead_code.py`, a step of `make check`.

vulture finds names that are defined and read nowhere; functions, methods, classes, properties and constants are
reported. Fields and attributes are not: records are written whole, and libraries read what is set on their objects.
A use in benchmarks or docs counts, one in tests does not: what only its test calls is dead. So does a name in a string
of the form `module:name`.

Exit code: 0 nothing is dead; 1 something is, or ALLOWED holds a name that is used or gone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import vulture

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "trainers", "serve")
USERS = ("benchmarks", "docs")
CONFIDENCE_MIN = 60  # vulture's for a name that is read nowhere
DECORATORS = ["@*.callback", "@*.exception_handler", "@field_validator", "@model_validator"]
NAMED = re.compile(r"""["'][\w.]+:(\w+)["']""")
ALLOWED = {
    **dict.fromkeys(("get_error_code", "get_error_desc", "has_overflowed", "report_error"), "TensorRT calls them"),
    **dict.fromkeys(("record_autoscaling_stats", "check_health"), "Ray Serve calls a replica's methods"),
    **dict.fromkeys(("backend_cls", "_on_insufficient_samples"), "Ray Train and Tune call what a class of theirs has"),
    "send_400_response": "uvicorn calls it on a connection",
    "_should_skip_dynamo": "torch calls it on a dispatch mode",
    **dict.fromkeys(
        (
            *("Check", "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
            *("ModelStreamInfer", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
        ),
        "an RPC is answered by the method of its name",
    ),
    "is_ready": "a question of the endpoint's client that tests alone ask",
    "in_force": "tests hold the remedies of every error against it",
    "READ_IN": "the contract test compares it with the installed Ray",
}
"""Name -> who uses it, though no code of ours reads it."""


def dead_code() -> list[vulture.core.Item]:
    """What nothing uses, by file and line."""
    finder = vulture.Vulture(ignore_decorators=DECORATORS)
    finder.scavenge([ROOT / folder for folder in (*PACKAGES, *USERS)], exclude=["*_pb2*.py"])
    named = {name for path in sources() for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    found = [*finder.unused_funcs, *finder.unused_methods, *finder.unused_classes, *finder.unused_props]
    found += [
        item for item in finder.unused_vars if item.name.lstrip("_")[:1].isupper()
    ]  # constants and aliases of types
    return sorted(
        (item for item in found if item.name not in named and item.filename.relative_to(ROOT).parts[0] in PACKAGES),
        key=lambda item: (item.filename, item.first_lineno),
    )


def sources() -> list[Path]:
    """The modules of the three packages."""
    return [path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]


def main() -> int:
    """Print what is dead; returns the exit code."""
    found = dead_code()
    dead = [item for item in found if item.name not in ALLOWED]
    for item in dead:
        place = f"{item.filename.relative_to(ROOT)}:{item.first_lineno}"
        print(f"{place}: nothing uses the {item.typ} '{item.name}': remove it, or give ALLOWED its user")
    needless = sorted(set(ALLOWED) - {item.name for item in found})
    for name in needless:
        print(f".ci/dead_code.py: ALLOWED needs no '{name}': it is used, or gone")
    return int(bool(dead or needless))


if __name__ == "__main__":
    sys.exit(main())
