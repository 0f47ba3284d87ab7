"""How fast an endpoint grows, shrinks, rests and wakes: `python -m benchmarks.scaling.run [--rounds 3]`.

Traffic comes and goes against an endpoint of 0..2 replicas; times are taken from the traffic's start or end to the
first moment at which Ray Serve says that the replica is there or gone. Writes result.json beside this file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cluster.runtime.environment import with_ray_environment

WIDTH = 2048
DEADLINE_S = 90.0
UP_DELAY_S, DOWN_DELAY_S = 2.0, 5.0
RESULT = Path(__file__).with_name("result.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ.update(with_ray_environment(dict(os.environ)))
    from cluster.runtime.session import ray_session

    with tempfile.TemporaryDirectory() as folder, ray_session():
        measured = [measure(url) for url in deployed(Path(folder)) for _ in range(rounds)]
    medians = {key: round(statistics.median(each[key] for each in measured), 2) for key in measured[0]}
    result = {
        "what": "seconds, medians",
        "up_delay_s": UP_DELAY_S,
        "down_delay_s": DOWN_DELAY_S,
        "rounds": measured,
        "medians": medians,
        "ray": importlib.metadata.version("ray"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(medians, indent=2))


def deployed(folder: Path) -> Iterator[str]:
    """The URL of an endpoint of 0..2 replicas, for as long as it is asked for."""
    from cluster.spec.serve import ReplicaSpec, ServeSpec
    from serve.config import EndpointConfig, VersionConfig
    from serve.deployments.endpoint import deploy, undeploy
    from tests.bundles import make_bundle, mlp_graph

    graph = mlp_graph(WIDTH, WIDTH, 10, layers=3)
    bundle = make_bundle(folder / "bundle", name="scaling", item_shape=(WIDTH,), graph=graph)
    replicas = ReplicaSpec(min=0, max=2, target_busy=0.3, up_delay_s=UP_DELAY_S, down_delay_s=DOWN_DELAY_S)
    version = VersionConfig(version="1", bundle=str(bundle))
    spec = ServeSpec(port=0, replicas=replicas, ready_timeout_s=DEADLINE_S)
    yield deploy(EndpointConfig(name="scaling", versions=(version,), default_version="1", spec=spec)).url
    undeploy("scaling")


def measure(url: str) -> dict[str, float]:
    """One round: rest, wake with one request, grow under traffic, shrink and rest after it."""
    until(lambda: processes() == 0)  # a replica that leaves answers for as long as it drains
    from serve.client import EndpointClient

    with EndpointClient(url, "scaling", timeout_s=DEADLINE_S) as client:
        started = time.monotonic()
        client.infer({"x": np.ones((1, WIDTH), np.float32)})
        woke_s = time.monotonic() - started
    until(lambda: replicas() == 1)
    with traffic(url) as began_s:
        until(lambda: replicas() == 2)
        grew_s = time.monotonic() - began_s
    ended_s = time.monotonic()
    until(lambda: replicas() < 2)
    shrank_s = time.monotonic() - ended_s
    until(lambda: replicas() == 0)
    rested_s = time.monotonic() - ended_s
    return {"zero_to_answer_s": woke_s, "one_to_two_s": grew_s, "two_to_fewer_s": shrank_s, "to_zero_s": rested_s}


@contextmanager
def traffic(url: str) -> Iterator[float]:
    """Four clients with batches of 64; yields when they began."""
    from serve.client import EndpointClient

    stop = threading.Event()

    def ask() -> None:
        with EndpointClient(url, "scaling", timeout_s=DEADLINE_S) as client:
            while not stop.is_set():
                client.infer({"x": np.ones((64, WIDTH), np.float32)})

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        yield began_s
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)


def replicas() -> int:
    from serve.deployments.endpoint import endpoints

    return next(found.replicas for found in endpoints() if found.name == "scaling")


def processes() -> int:
    """Replicas in any state: starting, running, leaving."""
    from ray import serve as ray_serve

    application = ray_serve.status().applications["scaling"]
    return sum(sum(each.replica_states.values()) for each in application.deployments.values())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
