"""The token of a Ray cluster, found where Ray itself looks for it. Loads nothing."""

from __future__ import annotations

import os
from pathlib import Path

MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
TOKEN_REMEDY = (
    f"Set {TOKEN_VARIABLE}, or {TOKEN_PATH_VARIABLE} to a file that holds it, to the cluster's token; on the head "
    "'ray get-auth-token' prints it."
)


def find_token() -> str | None:
    """The token that Ray would use, in Ray's order: variable, file named by a variable, ~/.ray/auth_token."""
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token
    named = os.environ.get(TOKEN_PATH_VARIABLE)
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
