"""Start a server, load it in a closed loop, compare servers round by round."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 120


class Server:
    """A server process that answers at `url`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def tell(self, **command: Any) -> dict[str, Any]:
        """Have servers/manta_ray.py do something to its endpoint, and return its answer. Blocks."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"the server ended at {command}")


@contextmanager
def server(command: list[str], url: str, body: bytes, headers: dict[str, str]) -> Iterator[Server]:
    """Start a server and wait until it answers the case's own request."""
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not answers(url, body, headers):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} did not answer: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield Server(process, url)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its workers behind


def answers(url: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        return httpx.post(url, content=body, headers=headers, timeout=10, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


class Wrk:
    """Closed-loop load by wrk."""

    def __init__(self, path: str, folder: Path) -> None:
        self.path, self.folder = path, folder

    def run(self, url: str, body: bytes, headers: dict[str, str], *, connections: int, seconds: float) -> dict:
        """Requests per second, latency percentiles in ms, and how many answers were not 2xx."""
        name = self.folder / "body"
        name.write_bytes(body)
        lines = [f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items()]
        script = self.folder / "post.lua"
        script.write_text(
            f'local f = io.open("{name}", "rb")\nwrk.body = f:read("*all")\nf:close()\nwrk.method = "POST"\n'
            + "\n".join(lines)
            + "\n"
        )
        command = [self.path, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script), url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
        return parse(done.stdout)


def parse(text: str) -> dict[str, float]:
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
    found = {"requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])}
    for share, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE):
        found[f"latency_ms_p{share}"] = float(value) * scale[unit]
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    found["not_2xx"] = int(errors[1]) if errors else 0
    return found


def compare(wrk: Wrk, targets: dict[str, tuple], *, connections: int, seconds: float, rounds: int) -> dict:
    """Measure each target in turn, `rounds` times; medians, and the ratio of each to the first in the same round."""
    rows: dict[str, list[dict]] = {name: [] for name in targets}
    for url, body, headers in targets.values():
        wrk.run(url, body, headers, connections=connections, seconds=1)  # warm-up
    for _ in range(rounds):
        for name, (url, body, headers) in targets.items():
            rows[name].append(wrk.run(url, body, headers, connections=connections, seconds=seconds))
    first = next(iter(rows))
    result = {}
    for name, measured in rows.items():
        ratios = [m["requests_per_s"] / b["requests_per_s"] for m, b in zip(measured, rows[first], strict=True)]
        result[name] = {
            key: round(statistics.median(m[key] for m in measured), 3) for key in measured[0] if key in measured[-1]
        }
        result[name][f"ratio_to_{first}"] = round(statistics.median(ratios), 3)
        result[name]["ratios"] = [round(ratio, 4) for ratio in ratios]
    return result
