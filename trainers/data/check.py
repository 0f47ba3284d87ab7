"""`python -m trainers.data.check FILE …`: what `manta data check` starts; cluster/cli/data.py has its options.

Invariant: exit code 0 when no finding is an error, 2 for errors and for a file that cannot be read. How a delimited
file is written is found from it where no option says so, and `--write` writes the spec that reads it the same way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from cluster.atomic import write_text
from cluster.cli.data import check as check_verb
from cluster.cli.forward import parse
from cluster.command import run_main
from cluster.errors import DataError
from cluster.spec.base import Auto
from cluster.spec.data import CsvSource, FileSource, JsonlSource, ParquetSource
from trainers.data.quality.check_files import check_files
from trainers.data.quality.page import to_html
from trainers.data.quality.report import QualityReport, check_table
from trainers.data.read.batches import read_batches, whole_bytes
from trainers.data.read.columns import plain_numbers
from trainers.data.read.delimited import file_start, settle_source
from trainers.data.read.fetch import called_by_url, find_files
from trainers.data.read.files import zip_member
from trainers.data.read.table_files import plain_source, read_file

MEMORY_MB = 1024


@dataclass(frozen=True)
class TextFormat:
    """What a text file's name does not say: `auto` is found from its first bytes. `delimiter`: a tab for .tsv."""

    delimiter: str | None = None
    encoding: str = "utf-8"
    header: Auto | bool = "auto"
    names: tuple[str, ...] | None = None
    skip_lines: Auto | int = "auto"
    skip_last_lines: Auto | int = "auto"
    comment: str | None = "auto"
    decimal: str = "auto"


PLAIN = TextFormat()
WITH_HEADER = TextFormat(header=True, decimal=".")
"""Rows that are known by their columns' names, words as they stand."""


def main(argv: list[str] | None = None) -> int:
    """Parse, check, print. Returns the exit code."""
    return run_main(_check, argv)


def _check(argv: list[str]) -> int:
    options = parse(argv, check_verb, module="trainers.data.check")
    asked = source_of(options.file, _text_format(options))
    source, reasons = settle(asked)
    if options.write:  # first: a file with bad values has its spec too
        write_spec(options.write, source, asked, options.target, options.test)
    report = make_report(
        source,
        options.target,
        test=options.test,
        memory_bytes=(options.memory_mb or MEMORY_MB) << 20,
        distributed=options.distributed,
    )
    if options.html:
        write_text(options.html, to_html(report, options.file))
    reading = {key: {"value": getattr(source, key), "reason": why} for key, why in reasons.items()}
    if options.as_json:
        text = json.dumps({**report.to_json(), "reading": reading}, indent=2)
    else:
        text = "\n".join([*_reading_lines(reading), to_lines(report)])
    sys.stdout.write(text + "\n")
    return 2 if any(finding.severity == "error" for finding in report.findings) else 0


def _text_format(options: SimpleNamespace) -> TextFormat:
    def given(value: int | str | None) -> Any:
        return "auto" if value is None else value

    header = given(options.header)
    return TextFormat(
        delimiter=options.delimiter,
        encoding=options.encoding or "utf-8",
        header=header if header == "auto" else header == "true",
        names=tuple(name.strip() for name in options.names.split(",")) if options.names else None,
        skip_lines=given(options.skip_lines),
        skip_last_lines=given(options.skip_last_lines),
        comment=given(options.comment),
        decimal=given(options.decimal),
    )


def _reading_lines(reading: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was found of the file's writing, without what every file has."""
    plain = {"header": True, "skip_lines": 0, "skip_last_lines": 0, "comment": None, "decimal": ".",
             "quoted_missing": "missing", "thousands": ""}  # fmt: skip
    return [f"reading  data.source.{key} is {found['value']!r}: {found['reason']}"
            for key, found in reading.items() if key not in plain or found["value"] != plain[key]]  # fmt: skip


def _unpacked_name(path: str) -> str:
    """The name that says the format: of a zip, that of the file in it. Raises DataError."""
    name = path.lower().removesuffix(".gz")
    if not name.endswith(".zip"):
        return name
    member = zip_member(find_files(path)[0]).filename.lower()
    if member.endswith((".parquet", ".pq")):
        raise DataError(
            f"Cannot read {path}",
            found=f"the zip holds the Parquet file {member}",
            rule="a zip holds a table of text: Parquet is packed already",
            remedy="Unpack it, and give the file in it.",
        )
    return member


def source_of(path: str, text: TextFormat = PLAIN) -> FileSource:
    """The source that reads a file, by its name; text formats with every value as it stands. Raises DataError."""
    name = _unpacked_name(path)
    if name.endswith((".parquet", ".pq")):
        return ParquetSource(kind="parquet", path=path)
    if name.endswith((".jsonl", ".ndjson")):
        return JsonlSource(kind="jsonl", path=path)
    tab = name.endswith(".tsv")
    try:
        return CsvSource(
            kind="csv",
            path=path,
            delimiter=text.delimiter or ("\t" if tab else "auto"),
            header=text.header,
            names=text.names,
            skip_lines=text.skip_lines,
            skip_last_lines=text.skip_last_lines,
            comment=text.comment,
            decimal=text.decimal,  # type: ignore[arg-type]
            quote=None if tab else '"',
            missing=(),
            encoding=text.encoding,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + "-".join(map(str, first["loc"][:1])).replace("_", "-")
        raise DataError(
            f"Cannot check {path}", found=f"{option} is {first['input']!r}: {first['msg']}", remedy=f"Mend {option}."
        ) from None


def settle(source: FileSource) -> tuple[FileSource, dict[str, str]]:
    """The source without `auto`, and why each is what it is. Raises DataError."""
    if not isinstance(source, CsvSource):
        return source, {}
    found = settle_source(source, find_files(source.path)[0])
    return found.source, found.reasons


def write_spec(path: Path, source: FileSource, asked: FileSource, target: str | None, test: str | None) -> None:
    """A spec that reads the file as the report did; what differs from the defaults is written out. Raises DataError."""
    import yaml

    defaults = type(source)(kind=source.kind, path=source.path)  # type: ignore[arg-type]
    values: dict[str, Any] = {"kind": source.kind, "path": source.path}
    if test:
        values["test_path"] = test
    for key, value in source.model_dump(mode="json").items():
        kept = key in ("missing", "quoted_missing") or value == getattr(defaults, key)  # the report reads all as it is
        if not kept:
            values[key] = value
    name, note = target, ""
    if name is None:
        name = _column_names(source)[-1]
        note = "  # no --target was given: the last column"
    lines = yaml.safe_dump({"source": values}, sort_keys=False, allow_unicode=True).splitlines()
    named = yaml.safe_dump({"target": name}, allow_unicode=True).strip()
    write_text(path, "\n".join(["version: 1", "data:", *(f"  {line}" for line in [*lines, named + note])]) + "\n")


def _column_names(source: FileSource) -> list[str]:
    paths = find_files(source.path)
    with called_by_url(paths):
        if isinstance(source, CsvSource):
            return file_start(paths[0], source).names
        return next(iter(read_batches(paths[:1], source))).column_names


def read_any(source: FileSource, path: str) -> pa.Table:
    """The files of a path by a source, numbers in text with decimal points. Raises DataError."""
    source, _ = settle(source)
    tables = [read_file(source, file) for file in find_files(path)]
    for table in tables:
        if twice := sorted({name for name in table.column_names if table.column_names.count(name) > 1}):
            raise DataError(
                f"Cannot read {path}", found=f"column '{twice[0]}' is there twice", remedy="Rename one of them."
            )
    return plain_numbers(source, plain_source(source, pa.concat_tables(tables, promote_options="permissive")))


def make_report(
    source: FileSource | str,
    target: str | None,
    *,
    test: str | None,
    memory_bytes: int,
    distributed: bool = False,
) -> QualityReport:
    """The report in memory, or in one pass over the files' pieces where the tables would take more.

    `distributed`: the pass runs on Ray Data, on the cluster that RAY_ADDRESS names or else a private one. Raises
    DataError.
    """
    source, _ = settle(source_of(source) if isinstance(source, str) else source)
    paths, others = find_files(source.path), find_files(test) if test else []
    with called_by_url([*paths, *others]):
        if distributed:
            from trainers.data.ray_data import RAY_DATA, standing_ray

            with standing_ray():
                return check_files(paths, source, target, test=others, executor=RAY_DATA)
        if whole_bytes([*paths, *others], source) > memory_bytes:
            return check_files(paths, source, target, test=others)
    table = read_any(source, source.path)
    beside = read_any(source, test) if test else None
    return check_table(table, target, test=beside, name=source.path)


def to_lines(report: QualityReport) -> str:
    """The report for a terminal."""
    lines = [f"{report.rows:,} rows, {len(report.columns)} columns, {len(report.findings)} findings"]
    for finding in report.findings:
        lines.append(f"{finding.severity:<8} {finding.sentence}  ->  {finding.fix}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
