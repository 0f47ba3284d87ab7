"""The configuration that Ray Serve 2.60 writes for HAProxy, mended before HAProxy reads it: text to text.

Ray Serve has no other place for these changes:

* HAProxy's own errors and unknown paths are the protocol's JSON, 503 with Retry-After where trying again helps; until
  the first routes have come, a path is 503 and not 404;
* a head has 10 s to come and a body 30 s, as behind it (serve/protocol/limits.py); a client that takes nothing of its
  answer for 30 s is gone;
* connections past seven eighths of `maxconn` are answered 503 instead of waiting, those of before go on;
* a body is waited for up to HAProxy's buffer, because only a buffered request can be sent again when its replica dies;
* a request that no replica can take waits 20 s, then it is 503: Ray Serve's fallback proxy would hold it for ever; one
  with the header `X-Manta-Look` does not wait, and starts no replica of an endpoint that rests at zero;
* a request's `X-Request-ID` is in every answer, also HAProxy's own, and its client's address goes on to the replica;
* metrics and statistics are bound to this host alone, and the admin socket is this user's alone.

Not covered: what is no HTTP at all, which HAProxy 2.8's parser refuses with a page that nothing changes; the number of
gRPC connections. Standard library only: haproxy_start.py imports it without installed packages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

CONNECTIONS_SHARE = (7, 8)  # of maxconn; the rest is for refusals, gRPC and scrapes
FILES_SHARE = (4, 5)  # of the files that may be open: a connection that waits has none to a replica
LOOK_HEADER = "x-manta-look"
NO_REPLICA = "the replica that had this request is gone, or none is ready; try again"
LATE = "the request did not arrive in time"
FULL = "the endpoint holds as many connections as it may; try again"
UNKNOWN_PATH = "there is no endpoint at this path"
NO_ROUTES = "the endpoints of this cluster are not known here yet; try again"


class ProxyLimits(NamedTuple):
    """Seconds that HAProxy waits for a client or for a replica."""

    head_timeout_s: float = 10.0
    """For a request's head, single bytes do not extend it."""
    body_timeout_s: float = 30.0
    """For the part of a body that HAProxy buffers; what is behind it waits for the rest."""
    reading_timeout_s: float = 30.0
    """For a client to take some more of its answer."""
    replica_wait_s: float = 20.0
    """For a replica, where none is up: one that starts, for an endpoint that rests at zero."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ProxyLimits:
        """The defaults, and what `MANTA_HEAD_TIMEOUT_S` and the like say otherwise."""
        given = {name: environment.get(f"MANTA_{name.upper()}") for name in cls._fields}
        return cls(**{name: float(value) for name, value in given.items() if value})


def error_pages() -> dict[int, bytes]:
    """Status -> the whole response that HAProxy sends for an error of its own."""
    return {
        503: _page("503 Service Unavailable\r\nRetry-After: 1", NO_REPLICA),
        400: _page("400 Bad Request\r\nConnection: close", "the request cannot be read"),
        408: _page("408 Request Timeout\r\nConnection: close", LATE),
    }


def mended(config: str, folder: str, limits: ProxyLimits, files_most: int | None = None) -> str:
    """`config` with the changes above. `folder` holds `error_pages` as `<status>.http`; None files: no limit."""
    return "\n".join(_mended(config.splitlines(), folder, limits, files_most)) + "\n"


def has_routes(config: str) -> bool:
    """Whether an endpoint is in it."""
    return any(line.split()[:1] == ["use_backend"] for line in config.splitlines())


def admin_socket(config: str) -> str:
    """The path by which HAProxy is asked, and by which another HAProxy takes over its listening sockets."""
    return next((line.split()[2] for line in config.splitlines() if _is_admin(line)), "")


def with_admin_socket(config: str, path: str) -> str:
    """The same with another such path."""
    before = admin_socket(config)
    return "".join(line.replace(before, path) if _is_admin(line) else line for line in config.splitlines(keepends=True))


def _mended(lines: list[str], folder: str, limits: ProxyLimits, files_most: int | None) -> Iterator[str]:
    most = _connections_most(lines, files_most)
    waits, early = _replica_waits(lines, limits.replica_wait_s), _before_routes(lines)
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        match line.split():
            case ["errorfile", "502" | "503" as status, _]:
                yield f"{indent}errorfile {status} {folder}/503.http"
            case ["errorfile", "504", _]:
                yield f"{indent}errorfile 504 {folder}/503.http"
                yield from (f"{indent}errorfile {status} {folder}/{status}.http" for status in (400, 408))
            case ["maxconn", _]:
                yield f"{indent}maxconn {most}"
                yield f"{indent}no strict-limits"  # fewer files than twice that are enough
            case ["option", "httplog"]:
                yield line
                yield f"{indent}option forwardfor"
                yield f"{indent}timeout http-request {limits.head_timeout_s:g}s"
            case ["bind", address] if address.startswith((":", "*:")):
                yield f"{indent}bind 127.0.0.1:{address.rpartition(':')[2]}"
            case ["stats", "socket", *_]:
                yield line.replace("mode 666", "mode 600")
            case ["frontend", "http_frontend"]:
                yield line
                yield from (f"    {rule}" for rule in _frontend_rules(most, limits))
            case ["backend", name] if name in waits:
                yield line
                yield from (f"    {rule}" for rule in waits[name])
            case ["http-request", "return", "status", "404", *_]:
                answer = f"503 hdr Retry-After 1 {_json(NO_ROUTES)}" if early else f"404 {_json(UNKNOWN_PATH)}"
                yield f"{indent}http-request return status {answer}"
            case ["http-request", "return", "status", "200", *_] if early and "grpc-status 5 " in line:
                yield line.replace("grpc-status 5 ", "grpc-status 14 ")  # NOT_FOUND -> UNAVAILABLE
            case _:
                yield line


def _is_admin(line: str) -> bool:
    return line.split()[:2] == ["stats", "socket"]


def _connections_most(lines: list[str], files_most: int | None) -> int:
    given = next((int(line.split()[1]) for line in lines if line.split()[:1] == ["maxconn"]), 4096)
    return given if files_most is None else min(given, files_most * FILES_SHARE[0] // FILES_SHARE[1])


def _frontend_rules(connections_most: int, limits: ProxyLimits) -> Iterator[str]:
    full = connections_most * CONNECTIONS_SHARE[0] // CONNECTIONS_SHARE[1]
    yield f"timeout client {limits.reading_timeout_s:g}s"
    # known by the connection and not by the count of now: a flood must not refuse who was there before it
    yield f"tcp-request connection set-var(sess.full) bool(true) if {{ fe_conn gt {full} }}"
    yield "http-request set-var(txn.request_id) req.hdr(x-request-id)"
    yield "http-after-response set-header X-Request-ID %[var(txn.request_id)] if { var(txn.request_id) -m found }"
    refusal = f"status 503 hdr Retry-After 1 hdr Connection close {_json(FULL)}"
    yield f"http-request return {refusal} if {{ var(sess.full) -m bool }}"
    yield f"http-request wait-for-body time {limits.body_timeout_s:g}s if !{{ var(sess.full) -m bool }}"
    # uvicorn's own text, for a verb that HTTP does not have and for a WebSocket
    text = "{ status 400 403 } { res.hdr(content-type) -m beg text/plain }"
    yield f"http-response return status 400 {_json('the request is not HTTP')} if {text}"


def _replica_waits(lines: list[str], wait_s: float) -> dict[str, list[str]]:
    """Backend -> its rules for requests that go to its spare server (the fallback proxy), while no replica is up."""
    place, spare, replicas = "", set(), defaultdict(list)
    for line in lines:
        match line.split():
            case ["backend" | "frontend" | "listen", name]:
                place = name
            case ["server", _, *options] if options[-1:] == ["backup"]:
                spare.add(place)
            case ["server", name, *_]:
                replicas[place].append(name)
    rules = {}
    for name in spare:
        none_is_up = " ".join(f"!{{ srv_is_up({server}) }}" for server in replicas[name])
        refusal = f"status 503 hdr Retry-After 1 {_json(NO_REPLICA)}"
        rules[name] = [
            f"http-request return {refusal} if {{ req.hdr({LOOK_HEADER}) -m found }} {none_is_up}".rstrip(),
            f"http-request set-timeout server {round(wait_s * 1000)}ms" + (f" if {none_is_up}" if none_is_up else ""),
        ]
    return rules


def _before_routes(lines: list[str]) -> bool:
    """Whether the controller has told nothing yet; it is not known then whether a path is an endpoint's."""
    answer = next((line.split() for line in lines if line.endswith(" if routes") and " return status " in line), [])
    return answer[3:4] == ["503"] and not has_routes("\n".join(lines))


def _page(head: str, words: str) -> bytes:
    body = f'{{"error":"{words}"}}'
    return f"HTTP/1.1 {head}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def _json(words: str) -> str:
    return f'content-type application/json string "{{\\"error\\":\\"{words}\\"}}"'
