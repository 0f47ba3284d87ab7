"""Another driver on the test's Ray: holds a turn and the room of all workers, until it is told to end."""

from __future__ import annotations

import sys

import ray
from ray.util.placement_group import placement_group

from cluster.control.queue import turn


def main() -> None:
    address, workers = sys.argv[1], int(sys.argv[2])
    ray.init(address=address, log_to_driver=False)
    with turn("first", workers, lambda text: None):
        assert placement_group([{"CPU": 1}] * workers).wait(60)
        sys.stdout.write("holds\n")
        sys.stdout.flush()
        sys.stdin.readline()


if __name__ == "__main__":
    main()
