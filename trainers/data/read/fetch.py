"""The files of a path, a pattern or a URL; those of URLs as local copies that remember where they came from.

Invariant: an error about a fetched file names its URL: the local copy's name means nothing to anybody.

Covered: every filesystem that fsspec knows, patterns, changed files. Not covered: credentials (the environment's).
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath

from cluster.errors import DataError
from trainers.data.read.files import readable_file


class FetchedFile(PosixPath):
    """A local copy of a file behind a URL."""

    url: str = ""


def find_files(pattern: str) -> list[Path]:
    """The files of a path, a pattern or a URL, sorted by name. Raises DataError for none."""
    if "://" in pattern:
        return fetch(pattern)
    if not glob.has_magic(pattern):
        return [readable_file(pattern)]
    found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - a whole pattern
    if not found:
        raise DataError(
            f"Cannot read {pattern}",
            found="no file fits the pattern",
            rule="a relative pattern is relative to the folder in which manta was started",
            remedy="Mend data.source.path.",
        )
    return [readable_file(path) for path in found if path.is_file()]


def fetch(url: str) -> list[Path]:
    """Copies of a URL's files on local disk, through fsspec's cache, sorted by name. Raises DataError."""
    return [_fetch_one(one) for one in _expand(url)]


def local_file(path: str | Path) -> Path:
    """A readable file on local disk, fetched where `path` is a URL. Raises DataError."""
    return _fetch_one(path) if isinstance(path, str) and "://" in path else readable_file(path)


@contextmanager
def called_by_url(paths: Iterable[Path]) -> Iterator[None]:
    """A DataError that leaves the block names the URLs of fetched files in place of their local copies."""
    try:
        yield
    except DataError as error:
        names = {str(path): path.url for path in paths if isinstance(path, FetchedFile) and path.url}
        if not any(local in error.message for local in names):
            raise

        def named(text: str) -> str:
            for local, url in names.items():
                text = text.replace(local, url)
            return text

        raise DataError(
            named(error.attempted), found=named(error.found), rule=named(error.rule), remedy=named(error.remedy),
            details=error.details,
        ) from None  # fmt: skip


def _expand(url: str) -> list[str]:
    """The URLs of a pattern, sorted. Raises DataError for none."""
    if not glob.has_magic(url):
        return [url]
    import fsspec

    try:
        system, pattern = fsspec.core.url_to_fs(url)
        found = sorted(system.glob(pattern))
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(url, str(error)) from None
    if not found:
        raise _unreadable(url, "no file fits the pattern")
    scheme = url.partition("://")[0]
    return [f"{scheme}://{name.lstrip('/') if scheme != 'file' else name}" if "://" not in name else name
            for name in found]  # fmt: skip


def _fetch_one(url: str) -> Path:
    import fsspec

    try:
        # check_files: a copy of an earlier run of this process is fetched again when the file has changed
        local = fsspec.open_local(f"filecache::{url}", mode="rb", filecache={"check_files": True})
    except FileNotFoundError:
        raise _unreadable(url, "there is no such file") from None
    except (OSError, ValueError, ImportError) as error:
        raise _unreadable(url, str(error)) from None
    path = FetchedFile(local if isinstance(local, str) else local[0])
    path.url = url
    with called_by_url([path]):
        readable_file(path)
    return path


def _unreadable(url: str, found: str) -> DataError:
    return DataError(f"Cannot read {url}", found=found, remedy="Look at the address and its rights.")
