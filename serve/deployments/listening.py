"""Where a running Ray Serve listens, against what a deploy wants: it listens once for all endpoints of a Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.runtime.ray_private import serve_details

REMEDY = (
    "Ray Serve listens once for all endpoints of a Ray: to change it, undeploy them, end Ray Serve with "
    "'serve shutdown' on the head, and deploy anew."
)


def listens_now() -> dict[str, Any]:
    """`host`, `port` and `grpc_port` (None: shut) of the Ray Serve that runs; empty where none does."""
    details = serve_details()
    if not details:
        return {}
    http, grpc = details.get("http_options") or {}, details.get("grpc_options") or {}
    is_open = bool(grpc.get("grpc_servicer_functions"))
    return {"host": http.get("host"), "port": http.get("port"), "grpc_port": grpc.get("port") if is_open else None}


def not_applied(wanted: Mapping[str, Any], running: Mapping[str, Any]) -> str:
    """What of `wanted` (None: nothing was said; port 0: any) a running Ray Serve does not follow; empty for nothing."""
    found = list(_differences(wanted, running))
    return f"Not applied: {'; '.join(found)}. {REMEDY}" if found else ""


def _differences(wanted: Mapping[str, Any], running: Mapping[str, Any]) -> Iterator[str]:
    for key, now in running.items():
        value = wanted.get(key)
        is_any = key != "host" and value == 0 and now is not None
        if value is not None and value != now and not is_any:
            shown = "shut" if now is None else now
            yield f"{key} {value}, because this Ray serves already with {key} {shown}"
