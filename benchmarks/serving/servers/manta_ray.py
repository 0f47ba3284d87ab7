"""Manta's endpoint on a private Ray. Usage: python manta_ray.py BUNDLE PORT [CONFIG_JSON]; the URL is .../m.

CONFIG_JSON is a `serve` section of a YAML. What happens to the endpoint while it serves comes as JSON
lines on standard input, `{"op": "deploy" | "refused" | "rollback" | "replicas" | "kill" | "replace", …}`; each is
answered by one JSON line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import psutil

from cluster.runtime.environment import with_ray_environment

os.environ.update(with_ray_environment(dict(os.environ)))

DEADLINE_S = 120.0


class Endpoint:
    """One endpoint and what may happen to it."""

    def __init__(self, bundle: str, port: int, changes: dict[str, Any]) -> None:
        from serve.config import EndpointConfig, VersionConfig
        from serve.deployments.endpoint import deploy

        version = VersionConfig(version="1", bundle=bundle)
        plain = EndpointConfig(name="m", versions=(version,), default_version="1")
        self.config = plain.with_values({**changes, "port": port})
        self._deploy = deploy
        deploy(self.config)

    def deploy(self, bundle: str) -> dict[str, Any]:
        """The same endpoint with its next version."""
        from serve.deployments.application import configuration

        number = self._deploy(self.config.with_version(bundle)).version
        self.config = configuration("m") or self.config
        return {"version": number}

    def refused(self, bundle: str, ready_timeout_s: float) -> dict[str, Any]:
        """The next version, which cannot be served, and what its deploy ended with."""
        from cluster.errors import MantaError
        from serve.deployments.endpoint import RolloutOptions

        wanted = self.config.with_version(bundle).with_values({"ready_timeout_s": ready_timeout_s})
        try:
            self._deploy(wanted, RolloutOptions(force=True))
        except MantaError as error:
            return {"reason": error.found[:200]}
        raise AssertionError(f"{bundle} is served")

    def rollback(self) -> dict[str, Any]:
        """The version before."""
        from serve.deployments.application import configuration
        from serve.deployments.endpoint import rollback

        number = rollback("m").version
        self.config = configuration("m") or self.config
        return {"version": number}

    def replicas(self, count: int) -> dict[str, Any]:
        """A fixed number of replicas."""
        self.config = self.config.with_values({"replicas.min": count, "replicas.max": count})
        self._deploy(self.config)
        return {"pids": self.await_replicas(lambda pids: len(pids) == count)}

    def kill(self) -> dict[str, Any]:
        """SIGKILL one replica and wait for its successor."""
        before = replica_pids()
        os.kill(min(before), signal.SIGKILL)
        return {"pids": self.await_replicas(lambda pids: len(pids) == len(before) and min(before) not in pids)}

    def replace(self) -> dict[str, Any]:
        """Every replica gets a successor first and is then drained, as when the code changes."""
        from ray import serve as ray_serve

        from cluster.runtime.ray_private import with_code_version
        from serve.deployments.application import deployment_options, reserved_now
        from serve.deployments.replica import endpoint_deployment

        before = replica_pids()
        options = deployment_options(self.config, reserved_now("m"))
        code = f"replaced at {time.time()}"
        deployment = with_code_version(endpoint_deployment(), code, options)
        target = ray_serve.RunTarget(deployment.bind("m"), name="m", route_prefix="/m")
        ray_serve.run_many([target], wait_for_applications_running=True)
        return {"pids": self.await_replicas(lambda pids: not pids & before and len(pids) == len(before))}

    def await_replicas(self, wanted: Any) -> list[int]:
        """Process ids once they are as wanted."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not wanted(pids := replica_pids()):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"replicas are {sorted(pids)}")
            time.sleep(0.1)
        return sorted(pids)


def replica_pids() -> set[int]:
    """Replicas among this process's descendants."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica:m" in " ".join(process.cmdline()):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def main(bundle: str, port: int, changes: dict[str, Any]) -> None:
    from cluster.runtime.session import ray_session

    with ray_session():
        endpoint = Endpoint(bundle, port, changes)
        for line in sys.stdin:
            command = json.loads(line)
            answer = getattr(endpoint, command.pop("op"))(**command)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
