"""A folder with one folder of images a class -> arrays.

Invariant: every image has the same size, because the spec resizes them or because they have it already; the order of
files on disk has no effect. Covered: what Pillow reads. Not covered: images past memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.errors import DataError
from cluster.spec.data import ImageFolderSource
from trainers.data.files import digest_files, readable_file

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def read_image_folder(source: ImageFolderSource) -> tuple[np.ndarray, np.ndarray, str]:
    """(N, C, H, W) uint8 images, (N,) class names, digest. Raises DataError."""
    root = Path(source.path)
    attempted = f"Cannot read the images of {source.path}"
    if not root.is_dir():
        found = "it is a file" if root.exists() else "there is no such folder"
        raise DataError(attempted, found=found, remedy="Give a folder with one folder of images a class.")
    files = sorted(path for path in root.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            attempted,
            found="no folder in it holds images",
            rule="images lie in <path>/<class>/<name> and end in " + ", ".join(sorted(SUFFIXES)),
            remedy="Give the folder that holds the class folders.",
        )
    images = [_read(readable_file(path), source) for path in files]
    _check_sizes(attempted, files, images)
    return np.stack(images), np.array([path.parent.name for path in files]), digest_files(files)


def _read(path: Path, source: ImageFolderSource) -> np.ndarray:
    """(C, H, W) uint8. Raises DataError for a file that is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if source.channels == 1 else "RGB")
            if source.size is not None:
                image = image.resize((source.size[1], source.size[0]), Image.Resampling.BILINEAR)
            array = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(
            f"Cannot read {path}", found=str(error), rule="an image must be whole", remedy="Replace or remove it."
        ) from None
    return array[None] if source.channels == 1 else np.moveaxis(array, -1, 0)


def _check_sizes(attempted: str, files: list[Path], images: list[np.ndarray]) -> None:
    first = images[0].shape[1:]
    for path, image in zip(files, images, strict=True):
        if image.shape[1:] != first:
            height, width = image.shape[1:]
            raise DataError(
                attempted,
                found=f"{files[0].name} has {first[0]}×{first[1]} pixels and {path.name} has {height}×{width}",
                rule="all images of a data set have one size",
                remedy="Set data.source.size: [height, width], and they are resized.",
            )
