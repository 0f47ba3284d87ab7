"""`python -m serve BUNDLE`: one endpoint in this process, without Ray."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.bundle import read_manifest
from cluster.command import run_main
from serve.config import EndpointConfig, VersionConfig, endpoint_name
from serve.server import listen, run_endpoint


def main(arguments: list[str] | None = None) -> int:
    """Serve until Ctrl-C. Returns the exit code."""
    return run_main(_serve, arguments)


def _serve(arguments: list[str]) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with listen(options.host, options.port) as listener:
        run_endpoint(_config(options), listener, options.grpc_port)
    return 0


def _config(options: argparse.Namespace) -> EndpointConfig:
    """The configuration that the command line means. Raises RequestError, BundleError."""
    version = VersionConfig(version="1", bundle=str(options.bundle.resolve()), variant=options.variant)
    config = EndpointConfig(
        name=options.name or endpoint_name(read_manifest(options.bundle).name),
        versions=(version,),
        default_version="1",
        engine_device=options.device,
        num_threads=options.threads,
    )
    values = {
        "batching.max_rows": options.max_rows,
        "batching.max_wait_ms": options.max_wait_ms,
        "queue.max_rows": options.queue_rows,
        "queue.max_wait_ms": options.queue_wait_ms,
        "access_log": options.access_log,
        "allow_non_finite": options.allow_non_finite or None,
        "unseen": options.unseen,
        "token_file": options.token_file,
        "admin_token_file": options.admin_token_file,
    }
    return config.with_values(values)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__, allow_abbrev=False)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--name", help="endpoint name (default: the bundle's)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free port")
    parser.add_argument("--grpc-port", type=int, help="serve gRPC as well; 0 takes a free port")
    parser.add_argument("--token-file", help="one bearer token a line; without it anyone may ask")
    parser.add_argument("--admin-token-file", help="tokens that may load and unload; without it nobody may")
    parser.add_argument("--variant", help="fp32, int8_static, … (default: the bundle's default)")
    parser.add_argument("--device", help="cpu, cuda:0, …")
    parser.add_argument("--threads", type=int, default=1, help="threads of one engine call; 0 lets the engine choose")
    parser.add_argument("--access-log", type=float, help="share of the requests to log, 0 to 1")
    parser.add_argument("--allow-non-finite", action="store_true", help="let NaN and infinity reach the model")
    parser.add_argument("--unseen", choices=("answer", "refuse"), help="raw rows with values that training had not")
    parser.add_argument("--queue-rows", type=int, help="rows that may wait")
    parser.add_argument("--queue-wait-ms", type=float, help="longest expected wait")
    parser.add_argument("--max-rows", type=auto_or(int), help="rows of one engine call, or auto")
    parser.add_argument("--max-wait-ms", type=auto_or(float), help="wait for other requests, or auto")
    return parser.parse_args(arguments)


def auto_or(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A number, or the word auto."""
    return lambda text: text if text == "auto" else kind(text)


if __name__ == "__main__":
    sys.exit(main())
