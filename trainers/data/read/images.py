"""Image files -> arrays: a folder with one folder of images a class, or a manifest of paths and labels.

Invariant: every image has the same size, because the spec resizes them or because they have it already; the order of
files on disk has no effect. Covered: what Pillow reads, 8 bits a channel. Not covered: images past memory; EXIF
rotation, here as in serving (serve/doors/images.py does the same steps).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.atomic import digest_json
from cluster.errors import DataError
from cluster.spec.data import CsvSource, DataSpec, ImageFolderSource, ImageManifestSource, JsonlSource
from trainers.data.read.files import digest_files, readable_file

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
ImageSource = ImageFolderSource | ImageManifestSource


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
    labels = [path.parent.name for path in files]
    return _stack(attempted, files, source), np.array(labels), digest_json([digest_files(files), labels])


def read_image_manifest(spec: DataSpec, source: ImageManifestSource) -> tuple[np.ndarray, np.ndarray, str]:
    """(N, C, H, W) uint8 images, (N,) labels as text, digest, in the manifest's order. Raises DataError."""
    from trainers.data.read.columns import make_column, to_texts
    from trainers.data.read.table_files import read_file
    from trainers.data.read.tables import check_columns

    manifest = readable_file(source.path)
    attempted = f"Cannot read the images of {source.path}"
    table = read_file(_table_source(source), manifest)
    check_columns(spec, [*table.column_names], source.path)
    if source.image not in table.column_names:
        raise DataError(
            attempted,
            found=f"it has no column '{source.image}'",
            rule="its columns are " + ", ".join(table.column_names[:20]),
            remedy="Set data.source.image to the column of paths.",
        )
    paths, labels = (to_texts(make_column(spec, name), table.column(name)) for name in (source.image, spec.target))
    for name, texts in ((source.image, paths), (spec.target, labels)):
        if len(holes := np.flatnonzero(texts.codes < 0)):
            raise DataError(
                attempted,
                found=f"data row {holes[0] + 1} has no '{name}' ({len(holes)} rows)",
                rule="each row names an image file and its label",
                remedy="Mend or remove these rows.",
            )
    files = [manifest.parent / paths.words[code] for code in paths.codes]
    images = _stack(attempted, [_listed(file, row, attempted) for row, file in enumerate(files)], source)
    return images, np.array(labels.words)[labels.codes], digest_files([manifest, *files])


def _table_source(source: ImageManifestSource) -> CsvSource | JsonlSource:
    name = source.path.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return JsonlSource(kind="jsonl", path=source.path)
    return CsvSource(kind="csv", path=source.path, delimiter="\t" if name.endswith(".tsv") else "auto")


def _listed(file: Path, row: int, attempted: str) -> Path:
    try:
        return readable_file(file)
    except DataError as error:
        found = f"data row {row + 1} names {file}: {error.found}"
        rule = "paths are relative to the manifest's folder"
        raise DataError(attempted, found=found, rule=rule, remedy=error.remedy) from None


def _stack(attempted: str, files: list[Path], source: ImageSource) -> np.ndarray:
    """(N, C, H, W) uint8. Raises DataError for files that are no images, and for images of several sizes."""
    images = [_read(readable_file(path), source) for path in files]
    _check_sizes(attempted, files, images)
    return np.stack(images)


def _read(path: Path, source: ImageSource) -> np.ndarray:
    """(C, H, W) uint8. Raises DataError for a file that is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if source.channels == 1 else "RGB")
            if source.size is not None:
                image = image.resize((source.size[1], source.size[0]), Image.Resampling.BILINEAR)
            array = np.asarray(image)
    except (
        UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning,
        OSError, SyntaxError, ValueError, EOFError,
    ) as error:  # fmt: skip
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
