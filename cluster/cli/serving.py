"""`manta deploy`, `endpoints`, `predict`, `undeploy`, `rollback`: carried out by serve/deployments/commands.py.

What can be checked without the serving room (the replica range, the bundle's manifest) is checked here, so that a
mistyped command is refused at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.forward import ForwardedCommand, forward
from cluster.cli.options import Address, AsJson
from cluster.entrypoints import COMMAND_MODULES
from cluster.errors import RequestError

PANEL = "Serving"
EndpointName = Annotated[str, typer.Argument(metavar="NAME", help="Name of an endpoint.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or of a run that has one.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the endpoint; else the bundle's.")]
Replicas = Annotated[
    str | None,
    typer.Option("--replicas", metavar="N|MIN..MAX", help="Replicas, or bounds for autoscaling; else as before, or 1."),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda", help="What engines run on; else as before, or cpu.")
]
Versions = Annotated[
    str | None,
    typer.Option(
        "--versions", metavar="latest|all|1,2", help="Versions that answer beside the new one; else as before."
    ),
]
Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port of the first endpoint, else 8000; 0 takes a free one."),
]
Host = Annotated[str | None, typer.Option("--host", help="Address that the first endpoint listens on, else 127.0.0.1.")]
Variant = Annotated[str | None, typer.Option("--variant", help="fp32, int8_static, …; else the bundle's default.")]
Watch = Annotated[bool, typer.Option("--watch", help="Go on and show latency and throughput until Ctrl-C.")]
Rows = Annotated[Path, typer.Argument(metavar="ROWS", help="CSV, TSV, JSON, JSON Lines, .npy or image file.")]
TokenFile = Annotated[
    str | None,
    typer.Option("--token-file", help="One bearer token a line: the first is sent. Without it MANTA_TOKEN is sent."),
]
Tokens = Annotated[
    str | None,
    typer.Option("--token-file", envvar="MANTA_TOKEN_FILE", help="Tokens that may ask; without it anyone may."),
]
AdminTokens = Annotated[
    str | None,
    typer.Option(
        "--admin-token-file", envvar="MANTA_ADMIN_TOKEN_FILE", help="Tokens that may load and unload; else nobody may."
    ),
]
ServeValues = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set one value of the `serve` section, e.g. batching.max_rows=32; else as before. May be repeated.",
    ),
]
Version = Annotated[str, typer.Option("--version", help="Version to ask; else the endpoint's default.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (deploy, endpoints, predict, undeploy, rollback):
        app.command(cls=ForwardedCommand, rich_help_panel=PANEL)(verb)


def deploy(
    context: typer.Context,
    bundle: BundleFolder,
    name: Name = None,
    replicas: Replicas = None,
    host: Host = None,
    port: Port = None,
    variant: Variant = None,
    device: Device = None,
    versions: Versions = None,
    token_file: Tokens = None,
    admin_token_file: AdminTokens = None,
    override: ServeValues = None,
    address: Address = None,
    as_json: AsJson = False,
) -> int:
    """Serve a bundle. On a cluster it returns when the endpoint answers; else it serves until undeploy or Ctrl-C."""
    from cluster.bundle.files import bundle_in, read_manifest

    replica_range(replicas)
    read_manifest(bundle_in(bundle))
    check_words(device, versions)
    return _room(context)


def endpoints(
    context: typer.Context,
    address: Address = None,
    watch: Watch = False,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """List endpoints with their versions, replicas and recent latency."""
    return _room(context)


def predict(
    context: typer.Context,
    name: EndpointName,
    rows: Rows,
    version: Version = "",
    address: Address = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Ask an endpoint about the rows of a file."""
    return _room(context)


def undeploy(context: typer.Context, name: EndpointName, address: Address = None, as_json: AsJson = False) -> int:
    """Take an endpoint away; what it has accepted is answered first."""
    return _room(context)


def rollback(
    context: typer.Context,
    name: EndpointName,
    address: Address = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Return an endpoint to the version before."""
    return _room(context)


def _room(context: typer.Context) -> int:
    return forward(context, COMMAND_MODULES["endpoints"], str(context.info_name))


def check_words(device: str | None, versions: str | None) -> None:
    """Raise RequestError for a device or a version policy that there is not."""
    if device not in (None, "cpu", "cuda"):
        raise RequestError("Cannot deploy", found=f"--device is {device!r}", rule="cpu or cuda")
    if versions is not None and not re.fullmatch(r"latest|all|[1-9]\d{0,8}(,[1-9]\d{0,8})*", versions):
        raise RequestError(
            "Cannot deploy", found=f"--versions is {versions!r}", rule="latest, all, or numbers of versions as in 1,3"
        )


def replica_range(text: str | None) -> tuple[int, int] | tuple[None, None]:
    """`2` or `1..4` as bounds; none for nothing. Raises RequestError."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if low > high or high == 0:
        raise RequestError(
            "Cannot deploy",
            found=f"--replicas is {text!r}",
            rule="a number, or bounds as in 1..4; 0..4 stops the last replica when no requests come",
        )
    return low, high
