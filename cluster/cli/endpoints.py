"""`manta deploy`, `endpoints`, `predict`, `undeploy`, `rollback`: all are `python -m serve.deployments …` by name.

The floor checks what it can without the serving room (the replica range, the bundle's manifest), so that a mistyped
command is told at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.children import run_module
from cluster.cli.options import Address, AsJson
from cluster.entrypoints import COMMAND_MODULES
from cluster.errors import RequestError

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
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the first endpoint; 0 takes a free one.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on.")]
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
Version = Annotated[str, typer.Option("--version", help="Version to ask; else the endpoint's default.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (deploy, endpoints, predict, undeploy, rollback):
        app.command()(verb)


def deploy(
    bundle: BundleFolder,
    name: Name = None,
    replicas: Replicas = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    variant: Variant = None,
    device: Device = None,
    versions: Versions = None,
    token_file: Tokens = None,
    admin_token_file: AdminTokens = None,
    address: Address = None,
    as_json: AsJson = False,
) -> int:
    """Serve a bundle. On a cluster it returns when the endpoint answers; else it serves until undeploy or Ctrl-C."""
    bounds = dict(zip(("--min-replicas", "--max-replicas"), map(str, replica_range(replicas)), strict=True))
    folder = bundle_folder(bundle)
    check_words(device, versions)
    options = {"--name": name, "--variant": variant, "--device": device, "--versions": versions, "--address": address}
    return _room(
        ["deploy", str(folder), "--host", host, "--port", str(port)],
        {
            **options,
            **(bounds if replicas is not None else {}),
            "--token-file": token_file,
            "--admin-token-file": admin_token_file,
        },
        as_json=as_json,
    )


def endpoints(
    address: Address = None, watch: Watch = False, token_file: TokenFile = None, as_json: AsJson = False
) -> int:
    """List endpoints with their versions, replicas and recent latency."""
    return _room(
        ["endpoints", *(["--watch"] if watch else [])],
        {"--address": address, "--token-file": token_file},
        as_json=as_json,
    )


def predict(
    name: EndpointName,
    rows: Rows,
    version: Version = "",
    address: Address = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> int:
    """Ask an endpoint about the rows of a file."""
    options = {"--address": address, "--token-file": token_file}
    return _room(["predict", name, str(rows), "--version", version], options, as_json=as_json)


def undeploy(name: EndpointName, address: Address = None, as_json: AsJson = False) -> int:
    """Take an endpoint away; what it has accepted is answered first."""
    return _room(["undeploy", name], {"--address": address}, as_json=as_json)


def rollback(name: EndpointName, address: Address = None, token_file: TokenFile = None, as_json: AsJson = False) -> int:
    """Return an endpoint to the version before."""
    return _room(["rollback", name], {"--address": address, "--token-file": token_file}, as_json=as_json)


def check_words(device: str | None, versions: str | None) -> None:
    """Raise RequestError for a device or a version policy that there is not."""
    if device not in (None, "cpu", "cuda"):
        raise RequestError("Cannot deploy", found=f"--device is {device!r}", rule="cpu or cuda")
    if versions is not None and not re.fullmatch(r"latest|all|[1-9]\d{0,8}(,[1-9]\d{0,8})*", versions):
        raise RequestError(
            "Cannot deploy", found=f"--versions is {versions!r}", rule="latest, all, or numbers of versions as in 1,3"
        )


def replica_range(text: str | None) -> tuple[int, int]:
    """`2` or `1..4` as bounds; 1 for nothing. Raises RequestError."""
    text = "1" if text is None else text
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if low > high or high == 0:
        raise RequestError(
            "Cannot deploy",
            found=f"--replicas is {text!r}",
            rule="a number, or bounds as in 1..4; 0..4 lets the endpoint rest when nobody asks",
        )
    return low, high


def bundle_folder(path: Path) -> Path:
    """The bundle at a path, or in the run at a path. Raises BundleError."""
    from cluster.bundle.files import bundle_in, read_manifest

    folder = bundle_in(path)
    read_manifest(folder)
    return folder


def _room(arguments: list[str], options: dict[str, str | None], *, as_json: bool) -> int:
    given = [word for key, value in options.items() if value is not None for word in (key, value)]
    return run_module(COMMAND_MODULES["endpoints"], [*arguments, *given, *(["--json"] if as_json else [])])
