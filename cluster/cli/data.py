"""`manta data check`: the quality report of a file, before there is a spec (trainers/data/check.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.cli.forward import ForwardedCommand, forward
from cluster.cli.options import AsJson
from cluster.entrypoints import COMMAND_MODULES

PANEL = "Data"
DataFile = Annotated[str, typer.Argument(metavar="FILE", help="A CSV, TSV, JSON Lines or Parquet file, or a pattern.")]
Target = Annotated[str | None, typer.Option("--target", help="Target column: adds balance, leakage and label noise.")]
Test = Annotated[str | None, typer.Option("--test", help="A second file: overlap and drift against it.")]
Delimiter = Annotated[str | None, typer.Option("--delimiter", help="Of a text file; found, or a tab for .tsv.")]
Header = Annotated[
    Literal["auto", "true", "false"] | None,
    typer.Option("--header", help="true, false or auto: whether the first line holds names; auto."),
]
Names = Annotated[str | None, typer.Option("--names", help="Names of the columns, with commas between them.")]
SkipLines = Annotated[int | None, typer.Option("--skip-lines", min=0, help="Lines before the table; found.")]
SkipLastLines = Annotated[
    int | None, typer.Option("--skip-last-lines", min=0, help="Lines after the table, such as totals; found.")
]
Comment = Annotated[str | None, typer.Option("--comment", help="Lines that begin with it are no rows; found.")]
Decimal = Annotated[Literal["auto", ".", ","] | None, typer.Option("--decimal", help="`.`, `,` or auto; auto.")]
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
    group.command(cls=ForwardedCommand)(check)
    app.add_typer(group, name="data", rich_help_panel=PANEL)


def _group() -> None:
    """Look at data."""


def check(
    context: typer.Context,
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
    return forward(context, COMMAND_MODULES["data-check"])
