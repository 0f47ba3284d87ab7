"""A driver to be killed: `python -m tests.integration.train_tests.drive FOLDER` trains on a Ray of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.runtime.environment import with_ray_environment

os.environ.update(with_ray_environment(dict(os.environ)))  # before anything imports ray

from cluster.runtime.session import ray_session
from tests.integration.train_tests.test_kill import AT
from tests.integration.train_tests.test_launch import victim_request
from trainers.launch.fit import launch_fit


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "driver" / "driver.pid").write_text(str(os.getpid()))
    with ray_session():
        request = victim_request(folder, "driver", "driver", at=AT)
        launch_fit(request, events=folder / "events.jsonl", folder=folder / "out")


if __name__ == "__main__":
    main()
