"""`manta data check`: the quality report of a file, before there is a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.children import run_module
from cluster.cli.options import AsJson
from cluster.entrypoints import COMMAND_MODULES

DataFile = Annotated[Path, typer.Argument(metavar="FILE", help="A CSV, TSV, JSON Lines or Parquet file, or a pattern.")]
Target = Annotated[str | None, typer.Option("--target", help="Target column: adds balance, leakage and label noise.")]
Test = Annotated[Path | None, typer.Option("--test", help="A second file: overlap and drift against it.")]
Delimiter = Annotated[str | None, typer.Option("--delimiter", help="Of a text file; found, or a tab for .tsv.")]
Header = Annotated[
    str | None, typer.Option("--header", help="true, false or auto: whether the first line holds names; auto.")
]
Names = Annotated[str | None, typer.Option("--names", help="Names of the columns, with commas between them.")]
SkipLines = Annotated[int | None, typer.Option("--skip-lines", min=0, help="Lines before the table; found.")]
SkipLastLines = Annotated[
    int | None, typer.Option("--skip-last-lines", min=0, help="Lines after the table, such as totals; found.")
]
Comment = Annotated[str | None, typer.Option("--comment", help="Lines that begin with it are no rows; found.")]
Decimal = Annotated[str | None, typer.Option("--decimal", help="`.`, `,` or auto; auto.")]
Write = Annotated[Path | None, typer.Option("--write", help="Write a spec that reads the file as it was read here.")]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Of a delimited text file: cp1252, utf-16, …; utf-8 when absent.")
]
MemoryMb = Annotated[
    int | None,
    typer.Option("--memory-mb", min=1, help="A table that would take more is read in one pass; 1024 when absent."),
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Read on Ray Data: the cluster of RAY_ADDRESS, or a private one.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as a self-contained page.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Look at data.", no_args_is_help=True)
    group.callback()(_group)
    group.command()(check)
    app.add_typer(group, name="data")


def _group() -> None:
    """Look at data."""


def check(
    file: DataFile,
    target: Target = None,
    test: Test = None,
    delimiter: Delimiter = None,
    header: Header = None,
    names: Names = None,
    skip_lines: SkipLines = None,
    skip_last_lines: SkipLastLines = None,
    comment: Comment = None,
    decimal: Decimal = None,
    encoding: Encoding = None,
    write: Write = None,
    html: Html = None,
    memory_mb: MemoryMb = None,
    distributed: Distributed = False,
    as_json: AsJson = False,
) -> int:
    """Report the quality of a file: types, missing values, duplicates, outliers, balance, leakage, drift."""
    options: dict[str, object] = {"--target": target, "--test": test, "--delimiter": delimiter, "--html": html}
    options |= {"--header": header, "--names": names, "--skip-lines": skip_lines, "--write": write}
    options |= {"--skip-last-lines": skip_last_lines, "--comment": comment, "--decimal": decimal}
    options |= {"--memory-mb": memory_mb, "--encoding": encoding}
    given = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    flags = [*(["--distributed"] if distributed else []), *(["--json"] if as_json else [])]
    return run_module(COMMAND_MODULES["data-check"], [str(file), *given, *flags])
