"""Functions and classes of the user's, by `module:name`.

Invariant: the folder in which manta was started is looked in like an installed package, in every worker that sees it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from cluster.errors import SpecError


def look_in(folder: str) -> None:
    """Let modules of a folder be found, where this worker sees it."""
    if folder and folder not in sys.path and Path(folder).is_dir():
        sys.path.append(folder)


def load_named(name: str, key: str) -> Any:
    """What `module:name` names. Raises SpecError; `key`: the path in the spec that says it."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"Cannot load {name}", found=str(error),
            rule="the module is looked for in the folder in which manta was started, and among installed packages",
            remedy=f"Mend {key}, or start manta in the folder of the module.",
        ) from error  # fmt: skip
