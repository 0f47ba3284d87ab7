"""`manta bundle show|verify`: look into a bundle without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cli.options import AsJson
from cluster.command import emit_json

if TYPE_CHECKING:  # bundles bring NumPy along: the verbs load them, so that `manta --help` stays fast
    from cluster.bundle.manifest import BundleManifest

BundlePath = Annotated[
    Path, typer.Argument(metavar="PATH", help="Folder of a bundle, or of a run that has one, e.g. runs/quickstart.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(help="Look into a bundle.", no_args_is_help=True)
    group.command()(show)
    group.command()(verify)
    app.add_typer(group, name="bundle")


def show(path: BundlePath, as_json: AsJson = False) -> None:
    """Show a bundle's manifest."""
    from cluster.bundle.files import bundle_in, read_manifest

    manifest = read_manifest(bundle_in(path))
    if as_json:
        emit_json(manifest.model_dump(mode="json"))
    else:
        _print(manifest)


def verify(path: BundlePath, as_json: AsJson = False) -> None:
    """Compare every file of a bundle with the manifest."""
    from cluster.bundle.files import bundle_in, open_bundle

    bundle = open_bundle(bundle_in(path))
    if as_json:
        emit_json({"ok": True, "bundle": bundle.manifest.name, "files": len(bundle.manifest.files)})
    else:
        typer.echo(f"Bundle '{bundle.manifest.name}' is whole: {len(bundle.manifest.files)} files match the manifest.")


def _print(manifest: BundleManifest) -> None:
    from cluster.telemetry.view import format_bytes, format_metric

    console = Console()
    console.print(Text.assemble((manifest.name, "bold"), f"  {manifest.task}"))
    for kind, tensors in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for tensor in tensors:
            console.print(Text(f"{kind}  {tensor.name}  {tensor.datatype}  {list(tensor.shape)}"))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for column in ("variant", "precision", "verdict", "size", "file"):
        table.add_column(column)
    for variant in manifest.variants:
        size = manifest.files[variant.file].size_bytes if variant.file in manifest.files else 0
        mark = " (default)" if variant.name == manifest.default_variant else ""
        table.add_row(variant.name + mark, variant.precision, variant.verdict, format_bytes(size), variant.file)
    console.print(table)
    for name, value in manifest.metrics.items():
        console.print(Text(f"{name}  {format_metric(name, value)}"))
