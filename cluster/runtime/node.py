"""`python -m cluster.runtime.node COMMAND …`: run a command with the variables that a node of a cluster needs.

    python -m cluster.runtime.node ray start --head --block --port=6379
    python -m cluster.runtime.node ray start --block --address=HEAD:6379

Ray reads these when its processes start, so they must be there before `ray start`, on every node. The images in docker/
have it as their entry point: there is one list of variables, the one in environment.py.

A node with GPUs also gets the resource `gpu_memory_mib` (nodes/gpu_memory.py), unless the command or the variable
RAY_OVERRIDE_RESOURCES gives one.

Invariant: the command takes this process's place (exec), so that signals and the exit code are its own; a variable
that is set already wins.
"""

from __future__ import annotations

import json
import os
import shutil
import sys

from cluster.command import run_main
from cluster.errors import RequestError
from cluster.runtime.environment import CLUSTER_ENVIRONMENT, with_ray_environment
from cluster.runtime.nodes.gpu_memory import GPU_MEMORY, node_resources
from cluster.runtime.private.haproxy import haproxy_environment
from cluster.temporary import shared_folder

RESOURCES_VARIABLE = "RAY_OVERRIDE_RESOURCES"  # ray/_private/ray_constants.py: JSON, merged with --resources


def node_environment(environment: dict[str, str]) -> dict[str, str]:
    """A copy of `environment` with what a node needs. Writes HAProxy's wrapper into a folder of this user."""
    folder = shared_folder("node")
    return with_ray_environment({**haproxy_environment(folder), **CLUSTER_ENVIRONMENT, **environment})


def resources_environment(environment: dict[str, str], command: list[str]) -> dict[str, str]:
    """The variable that gives a node its GPU memory; nothing where the user has said it."""
    given = environment.get(RESOURCES_VARIABLE, "{}")
    if GPU_MEMORY in given or any(GPU_MEMORY in word for word in command):
        return {}
    found = node_resources()
    return {RESOURCES_VARIABLE: json.dumps({**json.loads(given), **found})} if found else {}


def main(arguments: list[str] | None = None) -> int:
    """Become the command. Returns an exit code where that cannot be."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    return run_main(
        lambda _: _become(command), []
    )  # its words, `--debug` and `--json` among them, are another program's


def _become(command: list[str]) -> int:
    if not command or shutil.which(command[0]) is None:
        raise RequestError(
            "Cannot start the command",
            found=f"there is no program '{command[0]}'" if command else "none was given",
            rule="python -m cluster.runtime.node COMMAND …",
        )
    environment = node_environment(dict(os.environ))
    os.execvpe(command[0], command, {**environment, **resources_environment(environment, command)})


if __name__ == "__main__":
    sys.exit(main())
