"""The trainer's and the endpoint's readers of image files are two (no room imports the other): here they meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.bundle.transforms import Pixels
from cluster.spec.data import ImageFolderSource
from serve.doors.images import decode
from trainers.data.read.images import read_image_folder

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (13, 17, 3)).astype(np.uint8)
GRAY = COLOR[..., 0]
FILES: dict[str, Callable[[], Image.Image]] = {
    "color.png": lambda: Image.fromarray(COLOR),
    "gray.png": lambda: Image.fromarray(GRAY),
    "gray of 16 bits.png": lambda: Image.fromarray(RNG.integers(0, 65536, (13, 17)).astype(np.uint16)),
    "palette.png": lambda: Image.fromarray(COLOR).convert("P"),
    "one bit.png": lambda: Image.fromarray(GRAY).convert("1"),
    "gray with alpha.png": lambda: Image.fromarray(GRAY).convert("LA"),
    "transparent.png": lambda: Image.fromarray(np.dstack([COLOR, GRAY])),
    "color.jpg": lambda: Image.fromarray(COLOR),
    "cmyk.jpg": lambda: Image.fromarray(COLOR).convert("CMYK"),
    "color.bmp": lambda: Image.fromarray(COLOR),
    "color.gif": lambda: Image.fromarray(COLOR),
    "color.webp": lambda: Image.fromarray(COLOR),
}


@pytest.mark.parametrize("size", [(13, 17), (8, 9), (30, 20)], ids=["as it is", "smaller", "larger"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_both_readers_give_the_same_pixels(name: str, channels: int, size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    path = tmp_path / "class" / name
    FILES[name]().save(path)
    source = ImageFolderSource(kind="image_folder", path=str(tmp_path), size=size, channels=1 if channels == 1 else 3)
    trained = read_image_folder(source)[0][0]
    pixels = Pixels(channels=1 if channels == 1 else 3, height=size[0], width=size[1], white=255.0)
    served, note = decode(path.read_bytes(), pixels)
    assert np.array_equal(pixels.raw(served), trained)
    assert bool(note) == (size != (13, 17))
