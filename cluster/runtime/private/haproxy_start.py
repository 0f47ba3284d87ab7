"""Run by Ray Serve in HAProxy's place: mend the configuration, start a guard, become HAProxy.

Ray Serve starts the program that RAY_SERVE_HAPROXY_BINARY_PATH names, for each change of replicas, and tells HAProxies
apart by their process ids: this process becomes HAProxy (exec), so that the id is the one that Ray Serve knows. Its
HAProxies share no port (`-dR`): a first one takes over the sockets of a stand-in or an orphan (`-x`, `-sf`), so
that no connection is lost, and keeps the endpoints that the stand-in knows until Ray Serve brings its own.

Invariant: standard library only, because it runs without installed packages (haproxy.py writes the launcher).
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from cluster.runtime.private.haproxy_config import (
    ProxyLimits,
    admin_socket,
    error_pages,
    has_routes,
    mended,
    with_admin_socket,
)
from cluster.runtime.private.haproxy_guard import STAND_IN, others, start_guard

BINARY_VARIABLE = "MANTA_HAPROXY_BINARY"


def main() -> None:
    """Does not return."""
    words, binary = sys.argv[1:], os.environ[BINARY_VARIABLE]
    config = Path(words[words.index("-f") + 1]) if "-f" in words[:-1] else None
    if config is not None and config.is_file():
        stand_in = config.with_name(STAND_IN)
        before = others(stand_in) if "-sf" not in words else []
        mend(config, stand_in if before else None)
        if "-sf" not in words:
            words += _taking_over(stand_in if before else config, before or others(config))
        start_guard(os.getpid(), os.getppid(), config, binary)
    os.execv(binary, [binary, *words])


def _taking_over(config: Path, processes: list[int]) -> list[str]:
    """The words that make HAProxy take over from `processes`, which run this configuration."""
    if not processes:
        return []
    return ["-x", admin_socket(config.read_text(encoding="utf-8")), "-sf", *map(str, processes)]


def mend(path: Path, stand_in: Path | None = None) -> None:
    """Mend the file, and write the pages that it names beside it. Without endpoints it gets those of the stand-in."""
    folder = path.parent.absolute()
    for status, page in error_pages().items():
        (folder / f"{status}.http").write_bytes(page)
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = None if files == resource.RLIM_INFINITY else files
    text = mended(path.read_text(encoding="utf-8"), str(folder), ProxyLimits.of(os.environ), most)
    if stand_in is not None and not has_routes(text):
        text = with_admin_socket(stand_in.read_text(encoding="utf-8"), admin_socket(text))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
