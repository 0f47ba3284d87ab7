"""The endpoint commands. Each takes parsed options and returns an exit code; errors are raised.

Where the Ray is: `--address` or RAY_ADDRESS, else the private Ray that serves the named endpoint on this host
(serve/deployments/directory.py), else, for `deploy` alone, a private Ray of its own that lives until Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace as Options
from typing import Any

from cluster.bundle import open_bundle
from cluster.bundle.files import bundle_in
from cluster.cli.serving import canary_percent, replica_range
from cluster.command import emit_json, write_line
from cluster.errors import EndpointError, RequestError
from cluster.spec.load import apply_overrides, override_section
from cluster.spec.serve import ServeSpec
from serve.access import client_token, load_access
from serve.client import EndpointClient
from serve.config import EndpointConfig, endpoint_name
from serve.deployments.directory import EndpointRecord, drop, forget, recorded_here, records, remember
from serve.deployments.history import show_history
from serve.deployments.lifetime import RayLifetime
from serve.row_files import IMAGES, read_image, read_rows

WATCH_EVERY_S = 1.0
LOOK_TIMEOUT_S = 5.0
WRONG_REQUEST = (400, 404, 413, 415, 422)  # answers that blame the rows or the version, and not the endpoint
LOOK_EVERY_S = 2.0  # a private Ray ends this long after its last endpoint


def deploy(options: Options) -> int:
    """Serve a bundle under a name; a name that is served already gets a new version."""
    if options.restore:
        return _restore(options)
    bundle = open_bundle(bundle_in(options.bundle))
    bundle.variant(options.variant)
    name = _given_name(options) or endpoint_name(bundle.manifest.name)
    load_access(options.token_file, options.admin_token_file)
    if _ray_address(options, _record(name)) is None:  # a Ray of its own has no endpoint yet: refused before it starts
        _check_token_files(_wanted(options, name, None).spec, ServeSpec())
    with _ray(options, name, start=True) as private:
        from serve.deployments import endpoint as place
        from serve.deployments.listening import listens_now, not_applied

        running = listens_now()
        how = place.RolloutOptions(reason=options.reason, force=options.force, progress=write_line)
        found = place.roll_out(name, lambda rollout: _checked(options, name, rollout.config), how)
        if options.as_json:
            value = {"name": name, "url": found.url, "version": found.version, "unchanged": found.unchanged}
            emit_json({"ok": True, **value})
        else:
            write_line(found.summary)
        if note := not_applied(_given_places(options), running):
            write_line(f"Note: {note}")
        if private is not None:
            remember(name, found.url, private)
            write_line("It lives until 'manta undeploy' or Ctrl-C.")
            try:
                _wait_for_end(RayLifetime(place.still_serves, recorded_here).is_needed)
            finally:
                forget(name)
    return 0


def _restore(options: Options) -> int:
    """Bring back the endpoints that are recorded and that the cluster does not have."""
    if _address(options) is None:
        raise RequestError(
            "Cannot restore endpoints",
            found="no cluster was named",
            rule="a cluster's endpoints outlive its head; those of a private Ray end with it",
            remedy="Give the cluster with --address.",
        )
    with _ray(options, ""):
        from serve.deployments import endpoint as place

        how = place.RolloutOptions(reason=options.reason, progress=write_line)
        found = place.restore_all(options.name, how)
    words = [each.summary for each in found]
    value = [{"name": each.name, "url": each.url, "version": each.version} for each in found]
    _done(
        options,
        "\n".join(words) or "Nothing is missing: the cluster serves all that is recorded.",
        {"endpoints": value},
    )
    return 0


def _checked(options: Options, name: str, before: EndpointConfig | None) -> EndpointConfig:
    """What is wanted, with its token files read."""
    wanted, percent = _wanted(options, name, before), canary_percent(options.canary)
    if percent is not None and before is None:
        raise RequestError(
            f"Cannot deploy a canary of '{name}'",
            found="there is no such endpoint",
            rule="a canary is tried beside a version that serves",
            remedy="Deploy it without --canary.",
        )
    if percent is not None and before is not None and wanted.default_version != before.default_version:
        wanted = wanted.with_default(before.default_version).with_canary(wanted.default_version, percent)
    _check_token_files(wanted.spec, before.spec if before else ServeSpec())
    return wanted


def _check_token_files(wanted: ServeSpec, before: ServeSpec) -> None:
    """Raises RequestError for a file that this command gives and that cannot be read; a kept one may be elsewhere."""
    changed = [new if new != old else None
               for new, old in ((wanted.token_file, before.token_file),
                                (wanted.admin_token_file, before.admin_token_file))]  # fmt: skip
    load_access(*changed)


def _wanted(options: Options, name: str, before: EndpointConfig | None) -> EndpointConfig:
    """The endpoint with the bundle as its next version; each value that neither a flag nor `--set` gives stays."""
    versions, (low, high) = options.versions, replica_range(options.replicas)
    flags = {
        "host": options.host,
        "port": options.port,
        "replicas.min": low,
        "replicas.max": high,
        "device": options.device,
        "versions": versions if versions in (None, "latest", "all") else versions.split(","),
        "token_file": options.token_file or None,
        "admin_token_file": options.admin_token_file or None,
    }
    config = EndpointConfig.of_bundle(name, bundle_in(options.bundle).resolve(), options.variant, before)
    return config.with_values(flags, options.override or ())


def _given_places(options: Options) -> dict[str, Any]:
    """Host and ports that this command names."""
    flags = {"host": options.host, "port": options.port}
    return {**flags, **apply_overrides({}, options.override or ())}


def _given_name(options: Options) -> str | None:
    """The name of `--name` or `--set name=…`. Raises SpecError for one that no endpoint can have."""
    given = options.name or apply_overrides({}, options.override or ()).get("name")
    return override_section(ServeSpec(), {"name": given}, attempted="Cannot deploy").name


def endpoints(options: Options) -> int:
    """List endpoints; with --watch again and again."""
    if options.history:
        with _ray(options, options.name):
            from serve.deployments import endpoint as place

            show_history(place.history(options.name), as_json=options.as_json)
        return 0
    while True:
        rows = _endpoint_rows(options)
        if options.as_json:
            emit_json({"ok": True, "endpoints": rows})
        else:
            sys.stdout.write(_table(rows))
            sys.stdout.flush()
        if not options.watch:
            return 0
        time.sleep(WATCH_EVERY_S)


def predict(options: Options) -> int:
    """Ask an endpoint about the rows of a file."""
    token = client_token(options.token_file)
    is_image = options.rows.suffix.lower() in IMAGES
    image, rows = (read_image(options.rows), []) if is_image else (b"", read_rows(options.rows))
    with EndpointClient(_url(options, options.name), options.name, token=token) as client:
        try:
            if is_image:
                answer = client.predict_image(image, version=options.version)
            else:
                answer = client.predict(rows, version=options.version)
        except EndpointError as error:
            if error.details.get("status") in WRONG_REQUEST:
                raise RequestError(f"Cannot ask about {options.rows}", found=error.found) from None
            raise
    for note in answer.get("notes", ()):
        write_line(f"Note: {note}.")
    for column, values in answer.get("unseen", {}).items():
        write_line(f"Note: training did not have {', '.join(map(repr, values))} in column '{column}'.")
    if options.as_json:
        emit_json({"ok": True, **answer})
        return 0
    for index, row in enumerate(answer["predictions"]):
        words = f"{row['label']}  ({row['probability']:.4f})" if "label" in row else f"{row['value']:g}"
        sys.stdout.write(f"{index}: {words}\n")
    return 0


def undeploy(options: Options) -> int:
    """Take an endpoint away."""
    record = _record(options.name)
    with _ray(options, options.name):  # a private Ray ends itself when its last endpoint is gone
        from serve.deployments import endpoint as place

        place.undeploy(options.name)
    if record is not None and (_address(options) or record.ray_address) == record.ray_address:
        drop(record)
    _done(options, f"Endpoint '{options.name}' is gone", {"name": options.name})
    return 0


def rollback(options: Options) -> int:
    """Return to the version before; the endpoint answers all the while."""
    token = client_token(options.token_file)
    with _ray(options, options.name):
        from serve.deployments import endpoint as place

        how = place.RolloutOptions(token=token, reason=options.reason, progress=write_line)
        found = place.rollback(options.name, options.to, how)
    _done(
        options,
        f"Endpoint '{options.name}' serves version {found.version} again",
        {"name": options.name, "version": found.version},
    )
    return 0


def promote(options: Options) -> int:
    """Make the canary the serving version."""
    token = client_token(options.token_file)
    with _ray(options, options.name):
        from serve.deployments import endpoint as place

        how = place.RolloutOptions(token=token, reason=options.reason, progress=write_line)
        found = place.promote(options.name, how)
    value = {"name": options.name, "version": found.version}
    _done(options, f"Endpoint '{options.name}' serves version {found.version}", value)
    return 0


@contextmanager
def _ray(options: Options, name: str, *, start: bool = False) -> Iterator[str | None]:
    """Connect to the Ray that matters for this endpoint; yields the address of a private Ray that was started."""
    record = _record(name)
    address = _ray_address(options, record)
    if address is None and not start:
        raise _unknown(name)
    if record is not None and address == record.ray_address and record.ray_token:
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": record.ray_token})
    from cluster.runtime.session import ray_session  # imports ray, which reads mode and token when it is imported

    with ray_session(address) as session:
        yield session.address if session.private else None


def _url(options: Options, name: str) -> str:
    record = _record(name)
    if record is not None and not _address(options):
        return record.url
    with _ray(options, name):
        from serve.deployments import endpoint as place

        urls = {found.name: found.url for found in place.endpoints()}
    if name not in urls:
        raise _unknown(name, list(urls))
    return urls[name]


def _endpoint_rows(options: Options) -> list[dict[str, Any]]:
    token = client_token(options.token_file)
    urls = {record.name: record.url for record in records() if options.name in (None, record.name)}
    if not _address(options):
        rows = [_endpoint_row(options, name, url, token) for name, url in sorted(urls.items())]
    else:
        with _ray(options, ""):
            from serve.deployments import endpoint as place

            there = sorted(place.endpoints(), key=lambda found: found.name)
            rows = [{"name": name, "url": LOST, "state": "LOST", "reason": LOST} for name in place.to_restore()]
            rows += [_endpoint_row(options, each.name, each.url, token, running=each.replicas) for each in there]
    found = [row for row in rows if options.name in (None, row["name"])]
    if options.name is not None and not found:
        raise _unknown(options.name)
    return found


def _endpoint_row(options: Options, name: str, url: str, token: str, running: int | None = None) -> dict[str, Any]:
    """What the endpoint says of itself; where no replica runs, what Ray Serve's controller says of it."""
    row: dict[str, Any] = {"name": name, "url": url}
    if running == 0:
        return row | _state_without_replica(name)
    with EndpointClient(url, name, token=token, timeout_s=LOOK_TIMEOUT_S, only_look=True) as client:
        try:
            index, stats = client.post("/v2/repository/index"), client.get("/stats")
            return {**row, "state": _overall(index), "versions": index, "stats": stats}
        except EndpointError as error:
            status = error.details.get("status")
            if status == 401:
                return {**row, "state": "NO TOKEN", "reason": error.found}
            unreachable = {"state": "UNREACHABLE", "reason": error.found}
    if status != 503:
        return row | unreachable
    with _ray(options, name) if not _address(options) else nullcontext():
        return row | _state_without_replica(name)


def _state_without_replica(name: str) -> dict[str, str]:
    from serve.deployments.state import state_without_replica

    found = state_without_replica(name)
    return {"state": found.state, "reason": found.reason}


def _overall(index: list[dict[str, str]]) -> str:
    return "READY" if any(entry["state"] == "READY" for entry in index) else "UNAVAILABLE"


LOST = "its head was lost: 'manta deploy --restore' serves it again"
COLUMNS = (
    ("REQ/S", "requests_per_s"),
    ("MEAN MS", "latency_ms_mean"),
    ("P50 MS", "latency_ms_p50"),
    ("P95 MS", "latency_ms_p95"),
    ("P99 MS", "latency_ms_p99"),
)


def _table(rows: list[dict[str, Any]]) -> str:
    """One line a version: over all its replicas, their CPU and memory summed."""
    names = " ".join(f"{title:>8}" for title, _ in COLUMNS)
    head = f"{'NAME':<16} {'VERSION':<8} {'STATE':<12} {'REPLICAS':>8} {names} {'CPU %':>6} {'MEM MIB':>8}  URL\n"
    lines = [_line(row, stats) for row in rows for stats in row.get("stats") or [{}]]
    return head + "".join(lines) if lines else "No endpoints here; 'manta deploy BUNDLE' starts one.\n"


def _line(row: dict[str, Any], stats: dict[str, Any]) -> str:
    numbers = " ".join(_cell(stats.get(key), 8) for _, key in COLUMNS)
    process = stats.get("process", {})
    memory = process.get("memory_bytes")
    usage = f"{_cell(process.get('cpu_percent'), 6)} {_cell(memory and memory / (1 << 20), 8)}"
    replicas = str(len(stats["replicas"])) if "replicas" in stats else "-"
    missing = f"  {len(stats['missing'])} replicas do not answer" if stats.get("missing") else ""
    of_version = [each["reason"] for each in row.get("versions", ()) if each["version"] == stats.get("version")]
    missing += "".join(f"  {reason}" for reason in (row.get("reason"), *of_version) if reason)
    place = f"{row['name']:<16} {stats.get('version', '-'):<8} {row['state']:<12} {replicas:>8}"
    return f"{place} {numbers} {usage}  {row['url']}{missing}\n"


def _cell(value: float | None, width: int) -> str:
    return f"{value:>{width}.2f}" if value is not None else f"{'-':>{width}}"


def _record(name: str) -> EndpointRecord | None:
    return next((record for record in records() if record.name == name), None)


def _address(options: Options) -> str | None:
    return options.address or os.environ.get("RAY_ADDRESS")


def _ray_address(options: Options, record: EndpointRecord | None) -> str | None:
    """The running Ray that matters for an endpoint with this record, or None."""
    return _address(options) or (record.ray_address if record else None)


def _unknown(name: str, have: list[str] | None = None) -> RequestError:
    names = have if have is not None else [record.name for record in records()]
    return RequestError(
        f"Cannot find endpoint '{name}'",
        found=f"endpoints here: {', '.join(sorted(names)) or 'none'}",
        remedy="Give the cluster with --address, or start it with 'manta deploy'.",
    )


def _wait_for_end(is_needed: Callable[[], bool]) -> None:
    """Until SIGINT or SIGTERM, or until the Ray is not needed any more."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(LOOK_EVERY_S):
        if not is_needed():
            write_line("The last endpoint is gone.")
            return


def _done(options: Options, text: str, value: dict[str, Any]) -> None:
    if options.as_json:
        emit_json({"ok": True, **value})
    else:
        write_line(text)
