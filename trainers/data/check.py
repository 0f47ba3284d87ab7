"""`python -m trainers.data.check FILE [--target T] [--test FILE] [--json] [--html PATH]
[--delimiter D] [--encoding E] [--memory-mb N] [--distributed]`: `manta data check` starts it.

Invariant: exit code 0 when no finding is an error, 2 for errors and for a file that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from cluster.atomic import write_text
from cluster.errors import DataError
from cluster.spec.data import CsvSource, JsonlSource, ParquetSource
from cluster.telemetry.edge import run_command
from trainers.data.quality.page import to_html
from trainers.data.quality.report import QualityReport, check_table
from trainers.data.quality.stream import check_files
from trainers.data.read.batches import FileSource, whole_bytes
from trainers.data.read.fetch import called_by_url
from trainers.data.read.table_files import find_files, read_file

MEMORY_MB = 1024


@dataclass(frozen=True)
class TextFormat:
    """What a text file's name does not say. `delimiter`: a comma, or a tab for .tsv, when None."""

    delimiter: str | None = None
    encoding: str = "utf-8"


PLAIN = TextFormat()


def main(argv: list[str] | None = None) -> int:
    """Parse, check, print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="manta data check")
    parser.add_argument("file")
    parser.add_argument("--target")
    parser.add_argument("--test", help="a second file: overlap and drift against it")
    parser.add_argument("--delimiter", help="of a text file; `,`, or a tab for .tsv, when absent")
    parser.add_argument("--encoding", default="utf-8", help="of a delimited text file: cp1252, utf-16, …")
    parser.add_argument("--memory-mb", type=int, default=MEMORY_MB,
                        help="a table that would take more is read in one pass, with sketches")  # fmt: skip
    parser.add_argument("--distributed", action="store_true",
                        help="read on Ray Data: the cluster of RAY_ADDRESS, or a private one")  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--html", type=Path)
    arguments = parser.parse_args(argv)
    return run_command(partial(_check, arguments), as_json=arguments.json)


def _check(arguments: argparse.Namespace) -> int:
    report = make_report(
        arguments.file,
        arguments.target,
        test=arguments.test,
        memory_bytes=arguments.memory_mb << 20,
        distributed=arguments.distributed,
        text=TextFormat(arguments.delimiter, arguments.encoding),
    )
    if arguments.html:
        write_text(arguments.html, to_html(report, arguments.file))
    text = json.dumps(report.to_json(), indent=2) if arguments.json else to_lines(report)
    sys.stdout.write(text + "\n")
    return 2 if any(finding.severity == "error" for finding in report.findings) else 0


def source_of(path: str, text: TextFormat = PLAIN) -> FileSource:
    """The source that reads a file, by its name; text formats with every value as it stands."""
    name = path.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        return ParquetSource(kind="parquet", path=path)
    if name.endswith((".jsonl", ".ndjson")):
        return JsonlSource(kind="jsonl", path=path)
    tab = name.endswith(".tsv")
    return CsvSource(
        kind="csv",
        path=path,
        delimiter=text.delimiter or ("\t" if tab else ","),
        quote=None if tab else '"',
        missing=(),
        encoding=text.encoding,
    )


def read_any(path: str, text: TextFormat = PLAIN) -> pa.Table:
    """A CSV, TSV, JSON Lines or Parquet file by its name. Raises DataError."""
    source = source_of(path, text)
    tables = [read_file(source, file) for file in find_files(path)]
    for table in tables:
        if twice := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
            raise DataError(
                f"Cannot read {path}", found=f"column '{twice[0]}' is there twice", remedy="Rename one of them."
            )
    return pa.concat_tables(tables, promote_options="permissive")


def make_report(
    path: str,
    target: str | None,
    *,
    test: str | None,
    memory_bytes: int,
    distributed: bool = False,
    text: TextFormat = PLAIN,
) -> QualityReport:
    """The report in memory, or in one pass over the files' pieces where the tables would take more.

    `distributed`: the pass runs on Ray Data, on the cluster that RAY_ADDRESS names or else a private one. Raises
    DataError.
    """
    source = source_of(path, text)
    paths, others = find_files(path), find_files(test) if test else []
    with called_by_url([*paths, *others]):
        if distributed:
            from trainers.data.stream.ray_data import ray_for_report

            with ray_for_report() as run:
                return check_files(paths, source, target, test=others, run=run)
        if whole_bytes([*paths, *others], source) > memory_bytes:
            return check_files(paths, source, target, test=others)
    table = read_any(path, text)
    _check_target(target, table, path)
    return check_table(table, target, test=read_any(test, text) if test else None)


def to_lines(report: QualityReport) -> str:
    """The report for a terminal."""
    lines = [f"{report.rows:,} rows, {len(report.columns)} columns, {len(report.findings)} findings"]
    for finding in report.findings:
        where = f" '{finding.column}'" if finding.column else ""
        lines.append(f"{finding.severity:<8} {finding.rule}{where}: {finding.text}  ->  {finding.fix}")
    return "\n".join(lines)


def _check_target(target: str | None, table: pa.Table, name: str) -> None:
    if target is not None and target not in table.column_names:
        raise DataError(
            f"Cannot check {name}",
            found=f"it has no column '{target}'",
            rule="its columns are " + ", ".join(table.column_names[:20]),
            remedy="Mend --target.",
        )


if __name__ == "__main__":
    sys.exit(main())
