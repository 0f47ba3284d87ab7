"""A driver that opens a private session, uses it, tells what it consists of, and waits to be ended."""

from __future__ import annotations

import json
import re
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import ray

from cluster.runtime.session import ray_session


def main() -> None:
    logs = Path(sys.argv[1])
    with ExitStack() as stack:
        opened: list[str] = []
        # a thread that ends after opening: the session must not end with it
        thread = threading.Thread(target=lambda: opened.append(stack.enter_context(ray_session(logs=logs)).address))
        thread.start()
        thread.join()
        pids = ray.get([ray.remote(num_cpus=0.1)(_pid).remote() for _ in range(2)])
        tree = [process.pid for process in psutil.Process().children(recursive=True)]
        assert set(pids) <= set(tree)
        sys.stdout.write(json.dumps({"address": opened[0], "pids": tree, **_holdings(tree)}) + "\n")
        sys.stdout.flush()
        if sys.argv[2] == "wait":
            threading.Event().wait()


def _pid() -> int:
    import os

    return os.getpid()


def _holdings(pids: list[int]) -> dict[str, list]:
    ports, shared, folders = set(), set(), set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            ports |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
            maps = Path("/proc", str(pid), "maps").read_text(encoding="utf-8").split()
            shared |= {word for word in maps if word.startswith("/dev/shm/")}
            paths = [file.path for file in process.open_files()]
            folders |= {match[0] for path in paths if (match := re.match(r".*?/manta-[^/]+", path))}
        except (psutil.NoSuchProcess, FileNotFoundError):
            continue
    return {"ports": sorted(ports), "shared": sorted(shared), "folders": sorted(folders)}


if __name__ == "__main__":
    main()
