"""The table of rules in docs/training.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"loop": "unit/loop_tests", "ray": "integration/train_tests", "unit": "unit"}


def test_every_rule_of_the_training_page_has_its_test() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("## Rules and their tests")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`([^`]+?)::(\w+)`", row)
        assert named, f"no test: {row}"
        for file, test in named:
            folder, _, rest = file.partition("/")
            text = (ROOT / "tests" / SHORT[folder] / rest).read_text(encoding="utf-8")
            assert f"def {test}(" in text, f"{file} has no {test}"
