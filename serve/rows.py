"""Files of raw rows for `manta predict`: CSV, JSON, and images as arrays of the model's shape.

Covered: CSV with a header, JSON (a list of rows), .npy, PNG and JPEG where Pillow is installed.
Not covered: other image preprocessing than gray or RGB and scaling to 0..1.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import MissingDependencyError, RequestError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp")


def read_rows(path: Path, metadata: dict[str, Any]) -> list[Any]:
    """Rows of a file as JSON-able values. `metadata` is the endpoint's. Raises RequestError."""
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
        if suffix in IMAGES:
            return [image_row(path, tuple(metadata["inputs"][0]["shape"][1:])).tolist()]
    except (OSError, ValueError, csv.Error) as error:
        raise RequestError(f"Cannot read rows from {path}", found=f"{type(error).__name__}: {error}") from None
    raise RequestError(
        f"Cannot read rows from {path}",
        found=f"its type is {path.suffix!r}",
        rule=f"one of .csv, .json, .npy, {', '.join(IMAGES)}",
    )


def image_row(source: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An image file (path or open file) as float32 of shape (channels, height, width), values 0..1."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError(
            "Cannot read an image", found="Pillow is not installed", remedy="pip install pillow"
        ) from None
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise RequestError("Cannot read an image", found=f"the model takes rows of shape {list(shape)}")
    channels, height, width = shape
    with Image.open(source) as image:
        found = image.convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(found, dtype=np.float32) / 255.0
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
