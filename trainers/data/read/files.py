"""Find and check the files of a source, before anything parses them.

Invariant: what these functions return exists, can be read, is not empty and is of the kind that was asked for;
everything else is a DataError that says what lies there instead.

Covered: missing, empty, folder, no permission, binary where text is expected, gzip by content, digests.
Not covered: what is inside (tables.py, idx.py).
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path

from cluster.atomic import sha256_file
from cluster.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
SNIFF_BYTES = 4096


def readable_file(path: str | Path) -> Path:
    """The path, once it is known to be a file that can be read and is not empty. Raises DataError.

    A relative path is relative to the current working directory.
    """
    file = Path(path).expanduser()
    attempted = f"Cannot read {path}"
    if file.is_dir():
        raise DataError(attempted, found="it is a directory", remedy="Give the path of a file in it.")
    try:
        with file.open("rb") as opened:
            first = opened.read(1)
    except FileNotFoundError:
        raise DataError(
            attempted,
            found=f"there is no such file in {file.resolve().parent}",
            rule="a relative path is relative to the folder in which manta was started",
            remedy=_nearest(file) or "Mend the path in data.source.",
        ) from None
    except PermissionError:
        raise DataError(
            attempted, found="permission denied", remedy="Give this user the right to read it (chmod u+r)."
        ) from None
    if not first:
        raise DataError(attempted, found="the file is empty (0 bytes)", remedy="Copy it again.")
    return file


def text_file(path: str | Path, encoding: str) -> Path:
    """`readable_file` that also holds text of this encoding, as far as its start shows. Raises DataError."""
    file = readable_file(path)
    start = sniff(file)
    if start.startswith(UTF16_MARKS) and not encoding.lower().replace("-", "").startswith("utf16"):
        raise DataError(
            f"Cannot read {path}",
            found="it begins with the mark of UTF-16",
            rule=f"this source reads {encoding}",
            remedy="Set data.source.encoding: utf-16 (manta data check: --encoding utf-16), or convert it to UTF-8.",
        )
    if b"\x00" in start and not encoding.lower().replace("-", "").startswith("utf16"):
        raise DataError(
            f"Cannot read {path}",
            found="it holds NUL bytes: the file is binary",
            rule="this source reads delimited text",
            remedy="Choose the source that fits (parquet, numpy, idx), or another file.",
        )
    return file


def sniff(path: Path) -> bytes:
    """The first bytes of a file, unpacked when it is gzip. Raises DataError for gzip that is cut short."""
    return open_bytes(path, SNIFF_BYTES)


def open_bytes(path: Path, limit: int = -1) -> bytes:
    """A file's bytes, unpacked when it is gzip by its content. Raises DataError for broken gzip."""
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            return file.read(limit)
    except (EOFError, OSError) as error:
        raise DataError(f"Cannot unpack {path}", found=str(error), remedy="Copy it again.") from None


def digest_files(paths: Iterable[Path]) -> str:
    """One sha256 over the contents of several files, in this order; names do not matter."""
    hashes = [sha256_file(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _nearest(file: Path) -> str:
    try:
        names = sorted(path.name for path in file.resolve().parent.iterdir())
    except OSError:
        return ""
    close = difflib.get_close_matches(file.name, names, n=1)
    return f"Did you mean {file.with_name(close[0])}?" if close else ""
