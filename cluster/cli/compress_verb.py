"""`manta compress`: a bundle or an ONNX file through the graph recipes and the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.children import run_module
from cluster.cli.options import AsJson
from cluster.entrypoints import COMMAND_MODULES

Source = Annotated[Path, typer.Argument(metavar="BUNDLE|ONNX", help="Folder of a bundle, or an ONNX file.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Prepared folder, .npz with inputs and 'targets', or a table; else the bundle's run's."
    ),
]
TargetColumn = Annotated[
    str | None,
    typer.Option("--target-column", help="Column of a table with the answers; 'targets' or 'target' when absent."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the new bundle; SOURCE.compressed when absent.")]
MaxDrop = Annotated[float, typer.Option("--max-drop", help="Largest accepted loss; 0.01 is one percentage point.")]
Target = Annotated[str, typer.Option("--target", help="cpu or gpu.")]
Threads = Annotated[int, typer.Option("--threads", help="Threads that latency is measured with.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Rows a call when latency is measured.")]
Minimize = Annotated[str, typer.Option("--minimize", help="latency, size or cost.")]
Recipes = Annotated[str | None, typer.Option("--recipes", help="Comma-separated graph recipes.")]
OnInconclusive = Annotated[
    str, typer.Option("--on-inconclusive", help="keep_baseline or accept_point_estimate, when the rows cannot tell.")
]
Workers = Annotated[int, typer.Option("--workers", help="Trials at a time; above 1 they run as Ray tasks.")]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(compress)


def compress(
    source: Source,
    data: Data = None,
    target_column: TargetColumn = None,
    out: Out = None,
    max_drop: MaxDrop = 0.01,
    target: Target = "cpu",
    threads: Threads = 1,
    batch_size: BatchSize = 1,
    minimize: Minimize = "latency",
    recipes: Recipes = None,
    on_inconclusive: OnInconclusive = "keep_baseline",
    workers: Workers = 1,
    as_json: AsJson = False,
) -> int:
    """Compress a bundle or an ONNX file within an accuracy budget, into a new bundle."""
    options = {
        "--data": data,
        "--target-column": target_column,
        "--out": out,
        "--max-drop": max_drop,
        "--target": target,
        "--threads": threads,
        "--batch-size": batch_size,
        "--minimize": minimize,
        "--recipes": recipes,
        "--on-inconclusive": on_inconclusive,
        "--workers": workers,
    }
    given = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    return run_module(COMMAND_MODULES["compress"], [str(source), *given, *(["--json"] if as_json else [])])
