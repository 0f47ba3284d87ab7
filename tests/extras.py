"""Pythons with an optional extra of their own: what our environment has, and the extra's packages on top.

Kept under ~/.cache/manta-tests, because building one takes a minute or more.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

BUILD_DEADLINE_S = 900.0


def python_with(name: str, *packages: str) -> Path:
    """The interpreter of an environment with `packages`, built by pip where it is not there yet. Skips without pip's
    index: then there is nothing to test with."""
    ours = sysconfig.get_paths()["purelib"]
    key = hashlib.sha256(" ".join([sys.version, ours, *packages]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "manta-tests"
    folder = cache / f"{name}-{key}"
    python, done = folder / "bin" / "python", folder / "done"
    cache.mkdir(parents=True, exist_ok=True)
    if done.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    own = next(folder.glob("lib/python*/site-packages"))
    # after the extra's own packages: what those replace comes first
    (own / "zz-ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    result = subprocess.run(pip, capture_output=True, text=True, timeout=BUILD_DEADLINE_S)
    if result.returncode:
        pytest.skip(f"pip could not install {', '.join(packages)}: {result.stderr.strip()[-300:]}")
    done.touch()
    return python
