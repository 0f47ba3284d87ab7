"""The README is true: its bash blocks run in order, its YAML is a valid spec, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.spec.load import parse_spec

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_yaml_is_a_valid_spec() -> None:
    (text,) = blocks("yaml")
    assert parse_spec(text).name == "quickstart"


def test_links_and_pictures_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def dry_run(target: str) -> subprocess.CompletedProcess[str]:
    """As typed in a shell: a make above this one would add its "Leaving directory" lines and its ARGS."""
    above = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "ARGS")
    environment = {key: value for key, value in os.environ.items() if key not in above}
    return subprocess.run(["make", "-n", target], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_make_targets_exist() -> None:
    for target in re.findall(r"^make (\S+)", README, re.MULTILINE):
        done = dry_run(target)
        assert done.returncode == 0, done.stderr


def test_quickstart_recipe_is_the_command_that_the_tests_run() -> None:
    done = dry_run("quickstart")
    assert done.stdout.strip().splitlines()[-1].split() == [".venv/bin/manta", "run", "configs/quickstart.yaml"]


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_bash_blocks_run_in_order(tmp_path: Path) -> None:
    """Each line as a user would type it; the endpoint's default port must be free on this machine."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = "set -euo pipefail\n" + "\n".join(blocks("bash"))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert '"predictions"' in done.stdout, "curl got no answer"
