"""Image files of strangers -> raw rows of an image model, by the facts that training left in the bundle (`Pixels`).

Order of work: format by the file's own bytes -> size by its header -> decode -> gray or RGB -> resize -> values.
Invariant: what training did to an image file (trainers/data/read/images.py) happens here too, step by step, so that
the same file has the same row on both sides (a test holds them together); nothing is decoded before its size is known.

Covered: PNG, JPEG, BMP, GIF, WebP; several files in one request; 400, 413 and 415 as errors of the protocol.
Not covered: the rotation that a camera writes beside the pixels (EXIF): training does not follow it either.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.bundle.transforms import ArrayTransforms, Pixels
from cluster.errors import MissingDependencyError, ProtocolError
from serve.protocol.codec import InferRequest
from serve.protocol.errors import bad_request

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # no other decoder is offered to strangers
PIXELS_MAX = 16 << 20  # 4096 × 4096: 48 MiB as RGB, whatever the file's own size
FILES_MAX = 64  # of one request


def image_pixels(transforms: Any) -> Pixels:
    """The model's `Pixels`. Raises ProtocolError 400 for a model to which an image file means nothing."""
    if isinstance(transforms, ArrayTransforms) and transforms.pixels is not None:
        return transforms.pixels
    if isinstance(transforms, ArrayTransforms):
        found = "the model was trained on arrays of numbers, and how an image file becomes one is not known"
        raise bad_request(found, rule=f"send rows of shape {list(transforms.item_shape)} to /predict")
    if transforms is not None:
        raise bad_request("the model takes rows of a table", rule="send them to /predict as objects by column name")
    raise bad_request("the bundle has no transforms of images", rule="send standardized tensors to /v2")


@dataclass(frozen=True)
class ImagesRequest(InferRequest):
    """Tensors of image files."""

    notes: list[str] = field(default_factory=list)
    """What was done to the images that their sender may not expect."""


def read_images(files: list[bytes], transforms: Any) -> ImagesRequest:
    """The model's inputs of some image files.

    Raises ProtocolError 400, 413, 415.
    """
    pixels = image_pixels(transforms)
    if not 1 <= len(files) <= FILES_MAX:
        found = f"the request has {len(files)} files" if files else "the request has no image"
        raise bad_request(found, rule=f"1 to {FILES_MAX} image files", status=413 if files else 400)
    rows, notes = [], []
    for number, data in enumerate(files):
        image, note = decode(data, pixels, where=f"image {number}: " if len(files) > 1 else "")
        rows.append(pixels.raw(image))
        notes += [note] if note else []
    return ImagesRequest(transforms.apply(np.stack(rows)), notes=notes)


def decode(data: bytes, pixels: Pixels, *, where: str = "") -> tuple[np.ndarray, str]:
    """An image file as (H, W) or (H, W, 3) uint8 of the model's size, and a note where it had another one."""
    Image = _pillow()
    if not data:
        raise bad_request(f"{where}the file is empty", rule=_RULE)
    with _sentences(where), _opened(data, Image, where) as opened:
        image = opened.convert("L" if pixels.channels == 1 else "RGB")
        note = ""
        if image.size != (pixels.width, pixels.height):
            note = f"{where}resized from {image.height}×{image.width} to {pixels.height}×{pixels.width} pixels"
            image = image.resize((pixels.width, pixels.height), Image.Resampling[pixels.interpolation.upper()])
        return np.asarray(image), note


@contextmanager
def _opened(data: bytes, Image: Any, where: str) -> Iterator[Any]:
    """The image once its header is read and its size accepted."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        if opened.width * opened.height > PIXELS_MAX:
            raise bad_request(
                f"{where}the image has {opened.width} × {opened.height} pixels",
                rule=f"at most {PIXELS_MAX:,} pixels",
                status=413,
                remedy="Make it smaller.",
            )
        yield opened


@contextmanager
def _sentences(where: str) -> Iterator[None]:
    """Pillow's errors as errors of the protocol."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        raise bad_request(f"{where}the file is no image that is read here", rule=_RULE, status=415) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise bad_request(f"{where}the image is too large", rule=f"at most {PIXELS_MAX:,} pixels", status=413) from None
    except ProtocolError:
        raise
    # a damaged file can raise any of these out of a decoder
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise bad_request(f"{where}the image is damaged: {why}", rule=_RULE) from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError(
            "Cannot read an image", found="Pillow is not installed", remedy="pip install pillow"
        ) from None
    return Image


_RULE = f"a whole file of one of {', '.join(FORMATS)}"
