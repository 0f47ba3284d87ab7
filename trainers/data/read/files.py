"""Find and check the files of a source, before anything parses them.

Invariant: what these functions return exists, can be read, is not empty and is of the kind that was asked for;
everything else is a DataError that says what lies there instead.

Covered: missing, empty, folder, no permission, binary where text is expected, gzip and zip by content, digests.
Not covered: what is inside (tables.py, idx.py).
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cluster.atomic import sha256_file
from cluster.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
SNIFF_BYTES = 4096
SHOWN_MAX = 4  # names in an error


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
    """The first bytes of a file, unpacked where it is packed. Raises DataError for a pack that is cut short."""
    return open_bytes(path, SNIFF_BYTES)


def open_bytes(path: Path, limit: int = -1) -> bytes:
    """A file's bytes, unpacked when it is gzip or a zip of one file. Raises DataError for a broken one."""
    with unpacked(path) as file:
        content: bytes = file.read(limit)
        return content


def packing(path: Path) -> str | None:
    """`gzip` or `zip` by the file's first bytes, else None."""
    with path.open("rb") as file:
        start = file.read(len(ZIP_MAGIC))
    return "gzip" if start.startswith(GZIP_MAGIC) else "zip" if start == ZIP_MAGIC else None


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes] | Any]:
    """The file opened to read its bytes, unpacked. Raises DataError, also while it is read."""
    packed = packing(path)
    try:
        if packed == "zip":
            with zipfile.ZipFile(path) as archive, archive.open(zip_member(path, archive)) as file:
                yield file
        else:
            with gzip.open(path, "rb") if packed else path.open("rb") as file:
                yield file
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"Cannot unpack {path}", found=str(error), remedy="Copy it again.") from None
    except (NotImplementedError, RuntimeError) as error:  # another compression, or a password
        raise DataError(
            f"Cannot unpack {path}", found=str(error), remedy="Unpack it, and give the file in it."
        ) from None


def zip_member(path: Path, archive: zipfile.ZipFile | None = None) -> zipfile.ZipInfo:
    """The one file in a zip, beside what packing programs add. Raises DataError for none or several."""
    if archive is None:
        with zipfile.ZipFile(path) as opened:
            return zip_member(path, opened)
    members = [member for member in archive.infolist()
               if not (member.is_dir() or any(part.startswith((".", "__MACOSX")) for part in
                                              Path(member.filename).parts))]  # fmt: skip
    if len(members) == 1:
        return members[0]
    names = ", ".join(member.filename for member in members[:SHOWN_MAX]) + (", …" if len(members) > SHOWN_MAX else "")
    workbook = any(member.filename.startswith("xl/") for member in members)
    raise DataError(
        f"Cannot read {path}",
        found=f"the zip holds {len(members)} files" + (f": {names}" if names else ""),
        rule="a zip holds one table",
        remedy="It is a workbook: save its sheet as CSV." if workbook else "Unpack it, and give the file of the table.",
    )


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
