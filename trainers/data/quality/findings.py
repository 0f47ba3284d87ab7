"""One finding of the quality report, shared by the modules that make them.

Invariant: a finding has evidence and names the spec line that mends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing to know about the data."""

    rule: str
    severity: Severity
    column: str
    text: str
    fix: str
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """Rule, column and text, as events and errors say it."""
        where = f" '{self.column}'" if self.column else ""
        return f"{self.rule}{where}: {self.text}"
