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
BundleFolder = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or of a run that has one.")
]
MaybeEndpoint = Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them; all when absent.")]
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
Canary = Annotated[
    str | None,
    typer.Option("--canary", metavar="PERCENT", help="Give the new version this share of the requests, e.g. 5%."),
]
Restore = Annotated[
    bool, typer.Option("--restore", help="No bundle: bring back what this cluster served before its head was lost.")
]
Force = Annotated[bool, typer.Option("--force", help="Take a bundle with other inputs or outputs than those served.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the endpoint's history.")]
ToVersion = Annotated[str | None, typer.Option("--to", metavar="VERSION", help="Return to this version instead.")]
History = Annotated[bool, typer.Option("--history", help="Show each version's state, author, time and reason.")]
Version = Annotated[str, typer.Option("--version", help="Version to ask; else the endpoint's default.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (deploy, endpoints, predict, undeploy, rollback, promote):
        app.command(cls=ForwardedCommand, rich_help_panel=PANEL)(verb)


def deploy(
    context: typer.Context,
    bundle: BundleFolder = None,
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
    canary: Canary = None,
    force: Force = False,
    reason: Reason = "",
    restore: Restore = False,
    address: Address = None,
    as_json: AsJson = False,
) -> int:
    """Serve a bundle. On a cluster it returns when the endpoint answers; else it serves until undeploy or Ctrl-C."""
    from cluster.bundle.files import bundle_in, read_manifest

    replica_range(replicas)
    if (bundle is None) != restore:
        raise RequestError(
            "Cannot deploy",
            found="neither a bundle nor --restore is given"
            if bundle is None
            else "both BUNDLE and --restore are given",
            rule="a bundle is deployed, or what was deployed is restored",
        )
    if bundle is not None:
        read_manifest(bundle_in(bundle))
    check_words(device, versions)
    canary_percent(canary)
    return _room(context)


def endpoints(
    context: typer.Context,
    name: MaybeEndpoint = None,
    history: History = False,
    address: Address = None,
    watch: Watch = False,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """List endpoints with their versions, replicas and recent latency."""
    if history and name is None:
        raise RequestError("Cannot show a history", found="no endpoint is named", remedy="Give its NAME.")
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
    to: ToVersion = None,
    reason: Reason = "",
    address: Address = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Return an endpoint to the version that it served well before."""
    return _room(context)


def promote(
    context: typer.Context,
    name: EndpointName,
    reason: Reason = "",
    address: Address = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Make an endpoint's canary its serving version."""
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


def canary_percent(text: str | None) -> float | None:
    """`5%` or `5` as 5.0; none for nothing. Raises RequestError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,3})?)%?", text)
    percent = float(match[1]) if match else 0.0
    if not 0 < percent <= 100:
        raise RequestError("Cannot deploy", found=f"--canary is {text!r}", rule="a share of the requests, as in 5%")
    return percent


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
