"""`manta bundle show|verify`, `compress`, `publish`, `fetch`: look into a bundle, make a smaller one, copy it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cli.forward import ForwardedCommand, forward
from cluster.cli.jobs import META_RUN, META_STORE, find_job, jobs_client
from cluster.cli.options import RUNS_DIR, AsJson, JobsAddress, RunOrJob, RunsDir, Store
from cluster.command import emit_json, write_line
from cluster.entrypoints import COMMAND_MODULES
from cluster.errors import RequestError

if TYPE_CHECKING:  # bundles bring NumPy along: the verbs load them, so that `manta --help` stays fast
    from cluster.bundle.manifest import BundleManifest

PANEL = "Bundles"
BundlePath = Annotated[
    Path, typer.Argument(metavar="PATH", help="Folder of a bundle, or of a run that has one, e.g. runs/quickstart.")
]
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
To = Annotated[Path | None, typer.Option("--to", help="Folder for the bundle; else ./<run>-bundle.")]
Version = Annotated[str | None, typer.Option("--version", help="Version in the store; else the latest.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(help="Look into a bundle.", no_args_is_help=True)
    group.command()(show)
    group.command()(verify)
    app.add_typer(group, name="bundle", rich_help_panel=PANEL)
    app.command(rich_help_panel=PANEL, cls=ForwardedCommand)(compress)
    app.command(rich_help_panel=PANEL)(publish)
    app.command(rich_help_panel=PANEL)(fetch)


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


def compress(
    context: typer.Context,
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
    return forward(context, COMMAND_MODULES["compress"])


def publish(run: RunOrJob, store: Store = None, runs_dir: RunsDir = RUNS_DIR, as_json: AsJson = False) -> int:
    """Copy a run's bundle into a store that other machines can reach."""
    from cluster.store.remote import publish_bundle
    from cluster.store.run_folder import find_run

    found = find_run(runs_dir, run)
    published = publish_bundle(found.bundle, _needed_store(store), found.name)
    if as_json:
        emit_json({"ok": True, "run": found.name, "store": published.store, "version": published.version})
    else:
        write_line(f"Bundle '{found.name}' is at {published.location}.")
    return 0


def fetch(
    target: RunOrJob,
    store: Store = None,
    to: To = None,
    version: Version = None,
    address: JobsAddress = None,
    as_json: AsJson = False,
) -> int:
    """Copy a bundle from a store and verify it. With --address the job says which run and which store."""
    from cluster.store.remote import fetch_bundle

    run = target
    if address is not None:
        with jobs_client(address) as client:
            job = find_job(client, target)
        run, store = job.metadata.get(META_RUN, target), store or job.metadata.get(META_STORE)
    folder = to or Path(f"{run}-bundle")
    bundle = fetch_bundle(_needed_store(store), run, folder, version=version)
    if as_json:
        emit_json({"ok": True, "run": run, "bundle": str(folder.resolve()), "files": sorted(bundle.manifest.files)})
    else:
        write_line(
            f"Bundle '{bundle.manifest.name}' is in {folder}: {len(bundle.manifest.files)} files, every hash right."
        )
    return 0


def _needed_store(store: str | None) -> str:
    if store is None:
        raise RequestError(
            "Cannot reach a bundle store",
            found="no store was named, and the job knows none",
            remedy="Give --store with a folder or a URL such as s3://bucket/manta.",
        )
    return store


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
