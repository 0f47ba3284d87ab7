"""Files of raw rows for `manta predict`: CSV with a header, JSON (a list of rows), .npy.

Not covered: image files, which go to the endpoint as they are (serve/images.py).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import RequestError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def read_rows(path: Path) -> list[Any]:
    """Rows of a file as JSON-able values. Raises RequestError."""
    try:
        suffix = path.suffix.lower()
        if suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return [dict(row) for row in csv.DictReader(file)]
        if suffix == ".json":
            raw = json.loads(path.read_text(encoding="utf-8"))
            return raw if isinstance(raw, list) else [raw]
        if suffix == ".npy":
            rows: list[Any] = np.load(path, allow_pickle=False).tolist()
            return rows
    except (OSError, ValueError, csv.Error) as error:
        raise RequestError(f"Cannot read rows from {path}", found=f"{type(error).__name__}: {error}") from None
    raise RequestError(
        f"Cannot read rows from {path}",
        found=f"its type is {path.suffix!r}",
        rule=f"one of .csv, .json, .npy, {', '.join(IMAGES)}",
    )


def read_image(path: Path) -> bytes:
    """The bytes of an image file. Raises RequestError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"Cannot read the image {path}", found=f"{type(error).__name__}: {error}") from None
