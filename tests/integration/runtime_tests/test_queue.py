"""The queue of a real Ray: a driver waits until another one has gone, also when the queue itself dies meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import ray

from cluster.control.queue import NAME, NAMESPACE, turn
from tests.e2e.cluster_tests.head import wait_for

WAIT_S = 60.0


def test_a_driver_waits_for_its_turn_and_the_queue_may_die(ray_local: str) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    command = [sys.executable, "-m", "tests.integration.runtime_tests.queue_script", ray_local, str(cpus)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    mine = threading.Event()

    def wait() -> None:
        with turn("second", cpus, said.append):
            mine.set()

    waiting = threading.Thread(target=wait, daemon=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        waiting.start()
        wait_for(lambda: said, WAIT_S)
        workers = f"{cpus} workers of 1 CPU each"
        assert said[0] == (
            f"waiting: needs {workers}; free now: room for 0 workers, run first holds {cpus} CPUs for an unknown time"
        )
        wait_for(lambda: requested_of_the_autoscaler() == 2 * cpus, WAIT_S)
        before = actor_pid()
        ray.kill(ray.get_actor(NAME, namespace=NAMESPACE), no_restart=False)
        wait_for(lambda: actor_pid() not in (None, before), WAIT_S)
        assert not mine.is_set()
        other.communicate("\n", timeout=WAIT_S)
        assert mine.wait(WAIT_S)
        assert said[-1] == "it is this run's turn"
        wait_for(lambda: requested_of_the_autoscaler() == 0, WAIT_S)
    finally:
        other.kill()
        other.communicate()
        if waiting.ident is not None:
            waiting.join(WAIT_S)
        ray.kill(ray.get_actor(NAME, namespace=NAMESPACE))


def requested_of_the_autoscaler() -> int:
    """How many CPUs it has been asked for."""
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    written = _internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL)
    return int(sum(bundle["CPU"] for bundle in json.loads(written or b"[]")))


def actor_pid() -> int | None:
    """Of the queue's process; None while it has none."""
    from ray.util.state import list_actors

    found = [actor for actor in list_actors(filters=[("name", "=", NAME)]) if actor.state == "ALIVE"]
    return found[0].pid if found else None
