"""The endpoint commands. Each takes parsed options and returns an exit code; errors are raised.

Where the Ray is: `--address` or RAY_ADDRESS, else the private Ray that serves the named endpoint on this host
(serve/deployments/directory.py), else, for `deploy` alone, a private Ray of its own that lives until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.bundle import open_bundle
from cluster.errors import EndpointError, RequestError
from cluster.spec.serve import ReplicaSpec
from serve.access import absolute, client_token, load_access
from serve.client import EndpointClient
from serve.config import EndpointConfig, VersionConfig, endpoint_name
from serve.deployments.directory import EndpointRecord, forget, records, remember
from serve.rows import IMAGES, read_rows

WATCH_EVERY_S = 1.0


def deploy(options: argparse.Namespace) -> int:
    """Serve a bundle under a name; a name that is served already gets a new version."""
    bundle = open_bundle(options.bundle)
    bundle.variant(options.variant)
    name = options.name or endpoint_name(bundle.manifest.name)
    folder = str(options.bundle.resolve())
    given = {"token_file": absolute(options.token_file), "admin_token_file": absolute(options.admin_token_file)}
    tokens = {key: path for key, path in given.items() if path}
    load_access(tokens.get("token_file"), tokens.get("admin_token_file"))
    with _ray(options, name, start=True) as private:
        from serve.deployments import endpoint as place

        config = place.configuration(name)
        if config is None:
            version = VersionConfig(version="1", bundle=folder, variant=options.variant)
            config = EndpointConfig(name=name, versions=(version,), default_version="1")
        else:
            config = config.with_version(folder, options.variant)
        replicas = ReplicaSpec(min=options.min_replicas, max=options.max_replicas)
        config = config.model_copy(update={"replicas": replicas, **tokens})
        place_options = place.EndpointOptions(host=options.host, port=options.port)
        found = place.deploy(config, place_options, progress=_say)
        if options.json:
            print_json({"ok": True, "name": name, "url": found.url, "version": found.version})
        else:
            _say(f"Endpoint '{name}' version {found.version} answers at {found.url}")
        if private is not None:
            remember(name, found.url, private)
            _say("It lives until Ctrl-C.")
            try:
                _wait_for_end()
            finally:
                forget(name)
    return 0


def endpoints(options: argparse.Namespace) -> int:
    """List endpoints; with --watch again and again."""
    while True:
        rows = _endpoint_rows(options)
        if options.json:
            print_json({"ok": True, "endpoints": rows})
        else:
            sys.stdout.write(_table(rows))
            sys.stdout.flush()
        if not options.watch:
            return 0
        time.sleep(WATCH_EVERY_S)


def predict(options: argparse.Namespace) -> int:
    """Ask an endpoint about the rows of a file."""
    token = client_token(options.token_file)
    if options.rows.suffix.lower() in IMAGES:
        _say("Pixels are sent as values 0..1, not standardized as in training: the answer may differ from the run's.")
    url = _url(options, options.name)
    with EndpointClient(url, options.name, token=token) as client:
        metadata = client.get(f"/v2/models/{options.name}")
        answer = client.predict(read_rows(options.rows, metadata), version=options.version)
    if options.json:
        print_json({"ok": True, **answer})
        return 0
    for index, row in enumerate(answer["predictions"]):
        words = f"{row['label']}  ({row['probability']:.4f})" if "label" in row else f"{row['value']:g}"
        sys.stdout.write(f"{index}: {words}\n")
    return 0


def undeploy(options: argparse.Namespace) -> int:
    """Take an endpoint away."""
    record = _record(options.name)
    if record is not None and not _address(options):
        os.kill(record.pid, signal.SIGTERM)  # its process ends its own Ray, after what was accepted is answered
    else:
        with _ray(options, options.name):
            from serve.deployments import endpoint as place

            place.undeploy(options.name)
    _done(options, f"Endpoint '{options.name}' is gone", {"name": options.name})
    return 0


def rollback(options: argparse.Namespace) -> int:
    """Return to the version before; the endpoint answers all the while."""
    token = client_token(options.token_file)
    with _ray(options, options.name):
        from serve.deployments import endpoint as place

        found = place.rollback(options.name, token=token)
    _done(
        options,
        f"Endpoint '{options.name}' serves version {found.version} again",
        {"name": options.name, "version": found.version},
    )
    return 0


def print_json(value: dict[str, Any]) -> None:
    """The one JSON value of `--json`."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()


@contextmanager
def _ray(options: argparse.Namespace, name: str, *, start: bool = False) -> Iterator[str | None]:
    """Connect to the Ray that matters for this endpoint; yields the address of a private Ray that was started."""
    record = _record(name)
    address = _address(options) or (record.ray_address if record else None)
    if address is None and not start:
        raise _unknown(name)
    if record is not None and address == record.ray_address and record.ray_token:
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": record.ray_token})
    from cluster.runtime.session import ray_session  # imports ray, which reads mode and token when it is imported

    with ray_session(address) as session:
        yield session.address if session.private else None


def _url(options: argparse.Namespace, name: str) -> str:
    record = _record(name)
    if record is not None and not _address(options):
        return record.url
    with _ray(options, name):
        from serve.deployments import endpoint as place

        urls = {found.name: found.url for found in place.endpoints()}
    if name not in urls:
        raise _unknown(name, list(urls))
    return urls[name]


def _endpoint_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    token = client_token(options.token_file)
    urls = {record.name: record.url for record in records()}
    if _address(options):
        with _ray(options, ""):
            from serve.deployments import endpoint as place

            urls = {found.name: found.url for found in place.endpoints()}
    rows = []
    for name, url in sorted(urls.items()):
        with EndpointClient(url, name, token=token, timeout_s=5.0) as client:
            try:
                index, stats = client.post("/v2/repository/index"), client.get("/stats")
            except EndpointError as error:
                state = "NO TOKEN" if (error.details or {}).get("status") == 401 else "UNREACHABLE"
                rows.append({"name": name, "url": url, "state": state, "reason": error.found})
                continue
        rows.append({"name": name, "url": url, "state": _overall(index), "versions": index, "stats": stats})
    return rows


def _overall(index: list[dict[str, str]]) -> str:
    return "READY" if any(entry["state"] == "READY" for entry in index) else "UNAVAILABLE"


def _table(rows: list[dict[str, Any]]) -> str:
    head = f"{'NAME':<16} {'VERSION':<8} {'STATE':<12} {'REQ/S':>8} {'P50 MS':>8} {'P99 MS':>8}  URL\n"
    lines = []
    for row in rows:
        for stats in row.get("stats") or [{}]:
            numbers = (stats.get("requests_per_s"), stats.get("latency_ms_p50"), stats.get("latency_ms_p99"))
            cells = " ".join(f"{value:>8.2f}" if value is not None else f"{'-':>8}" for value in numbers)
            version = stats.get("version", "-")
            lines.append(f"{row['name']:<16} {version:<8} {row['state']:<12} {cells}  {row['url']}\n")
    return head + "".join(lines) if lines else "No endpoints here; 'manta deploy BUNDLE' starts one.\n"


def _record(name: str) -> EndpointRecord | None:
    return next((record for record in records() if record.name == name), None)


def _address(options: argparse.Namespace) -> str | None:
    return options.address or os.environ.get("RAY_ADDRESS")


def _unknown(name: str, have: list[str] | None = None) -> RequestError:
    names = have if have is not None else [record.name for record in records()]
    return RequestError(
        f"Cannot find endpoint '{name}'",
        found=f"endpoints here: {', '.join(sorted(names)) or 'none'}",
        remedy="Give the cluster with --address, or start it with 'manta deploy'.",
    )


def _wait_for_end() -> None:
    """Until SIGINT or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _done(options: argparse.Namespace, text: str, value: dict[str, Any]) -> None:
    if options.json:
        print_json({"ok": True, **value})
    else:
        _say(text)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
