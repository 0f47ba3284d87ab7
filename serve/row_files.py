"""Files of raw rows for `manta predict`: CSV and TSV with a header, JSON (a list of rows), JSON Lines, .npy.

Not covered: image files, which go to the endpoint as they are (serve/doors/images.py).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import RequestError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def read_rows(path: Path) -> list[Any]:
    """Rows of a file as JSON-able values. Raises RequestError."""
    reader = READERS.get(path.suffix.lower())
    attempted = f"Cannot read rows from {path}"
    if reader is None:
        raise RequestError(
            attempted, found=f"its type is {path.suffix!r}", rule=f"one of {', '.join((*READERS, *IMAGES))}"
        )
    try:
        rows = reader(path)
    except (OSError, ValueError, csv.Error) as error:
        raise RequestError(attempted, found=f"{type(error).__name__}: {error}") from None
    if not rows:
        raise RequestError(attempted, found="it has no rows", remedy="Give a file that has rows.")
    return rows


def _read_csv(path: Path) -> list[Any]:
    """Words as they stand: the endpoint's transforms read them as training read its file. Raises ValueError."""
    tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix.lower() == ".tsv" else {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, **tabs)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"line {reader.line_num} has another number of fields than the header, {len(reader.fieldnames)}"
                )
            rows.append(dict(row))
        return rows


def _read_json(path: Path) -> list[Any]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    return raw if isinstance(raw, list) else [raw]


def _read_json_lines(path: Path) -> list[Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _read_array(path: Path) -> list[Any]:
    rows: list[Any] = np.load(path, allow_pickle=False).tolist()
    return rows


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".npy": _read_array,
}


def read_image(path: Path) -> bytes:
    """The bytes of an image file. Raises RequestError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"Cannot read the image {path}", found=f"{type(error).__name__}: {error}") from None
