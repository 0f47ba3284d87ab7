"""The short way of an infer request through a replica: uvicorn -> our door, without Ray Serve's own wrapping.

Ray Serve puts per-request tasks, contexts, an access record and metrics around every call of an ASGI application;
on a small model that is most of the time. Its hook for middleware (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`,
set in cluster/runtime/environment.py) is outside of all that, so that infer requests go to the door at once.

What that leaves to us, and where it is: the bound on waiting requests (serve/batching.py), metrics (serve/metrics.py),
the autoscaler's signal (scaling.py), a client that leaves (serve/asgi.py). What stays Ray Serve's: when a replica
stops, its HTTP server first finishes the requests that it has. Every path but infer takes Ray Serve's way.

Without the hook (a cluster whose nodes lack the variable) everything works, only slower.
"""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware

from serve.asgi import App, Receive, Scope, Send


class Shortcut:
    """Outermost ASGI middleware of a replica's HTTP server."""

    door: App | None = None
    """The door of this process; None in Ray Serve's own proxies."""
    prefix = ""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = Shortcut.door
        if door is not None and scope["type"] == "http":
            path: str = scope["path"]
            if path.endswith("/infer") and path.startswith(Shortcut.prefix):
                scope["root_path"] = Shortcut.prefix[:-1]
                await door(scope, receive, send)
                return
        await self._app(scope, receive, send)


def open_shortcut(door: App, name: str) -> None:
    """Called once in a replica: infer requests below the endpoint's path go to `door`."""
    Shortcut.door, Shortcut.prefix = door, f"/{name}/"


def middlewares() -> list[Any]:
    """What Ray Serve's hook returns."""
    return [Middleware(Shortcut)]
