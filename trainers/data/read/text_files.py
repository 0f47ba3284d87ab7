"""Plain text files whose names say the label -> a table with the columns `text` and the target.

    sample: file   root/<label>/<name>.txt     one row a file
    sample: line   root/<label>.txt            one row a line; blank lines are no rows

Invariant: the order of files on disk has no effect; all text is of the spec's encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.atomic import digest_json
from cluster.errors import DataError
from cluster.spec.data import DataSpec, TextFilesSource
from trainers.data.read.files import digest_files, text_file
from trainers.data.read.raw import RawData

TEXT = "text"  # name of the only feature column, and of the field that serving takes
SUFFIX = ".txt"


def read_text_files(
    spec: DataSpec, source: TextFilesSource, inspect: Callable[[pa.Table, np.ndarray | None], object] | None = None
) -> RawData:
    """All samples of the folder. Raises DataError."""
    from trainers.data.read.tables import Origin, table_data

    if spec.target == TEXT:
        raise DataError(
            f"Cannot read the texts of {source.path}",
            found=f"data.target is '{TEXT}'",
            rule=f"'{TEXT}' is the column of the texts; the target is the label in a file's or folder's name",
            remedy="Leave data.target out, or give it another name.",
        )
    files = _find(source)
    rows = [row for path in files for row in _rows(path, source)]
    texts, labels = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [])
    table = pa.table({TEXT: pa.array(texts, pa.string()), spec.target: pa.array(labels, pa.string())})
    if inspect:
        inspect(table, None)
    declared = spec.model_copy(update={"columns": {TEXT: "text", **spec.columns}})
    return table_data(declared, table, Origin(source.path, _digest(files, source)))


def _find(source: TextFilesSource) -> list[Path]:
    root = Path(source.path).expanduser()
    attempted = f"Cannot read the texts of {source.path}"
    layout = f"<label>/<name>{SUFFIX}" if source.sample == "file" else f"<label>{SUFFIX}"
    if not root.is_dir():
        found = "it is a file" if root.exists() else f"there is no such folder in {root.resolve().parent}"
        raise DataError(attempted, found=found, remedy=f"Give the folder that holds {layout}.")
    patterns = {"file": f"*/*{SUFFIX}", "line": f"*{SUFFIX}"}
    files = sorted(path for path in root.glob(patterns[source.sample]) if path.is_file())
    if not files:
        other = "line" if source.sample == "file" else "file"
        fits = any(root.glob(patterns[other]))
        raise DataError(
            attempted,
            found=f"no file in it fits {layout}",
            rule=f"data.source.sample: {source.sample} reads {layout}",
            remedy=f"Set data.source.sample: {other}." if fits else "Mend data.source.path.",
        )
    return files


def _rows(path: Path, source: TextFilesSource) -> Iterator[tuple[str, str]]:
    """(text, label) of each sample of a file. Raises DataError."""
    from trainers.data.read.table_files import decoded_text

    text = decoded_text(text_file(path, source.encoding), source.encoding).decode()
    if source.sample == "file":
        if not text.strip():
            raise DataError(f"Cannot read {path}", found="it holds white space alone", remedy="Remove the file.")
        yield text, path.parent.name
        return
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise DataError(f"Cannot read {path}", found="it holds white space alone", remedy="Remove the file.")
    for line in lines:
        yield line, path.stem


def _digest(files: list[Path], source: TextFilesSource) -> str:
    """Over contents and labels: a file that moves to another label is another source."""
    labels = [path.parent.name if source.sample == "file" else path.stem for path in files]
    return digest_json([digest_files(files), labels])
