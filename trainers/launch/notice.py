"""What workers are told: their job; to stop, by the driver (Ctrl-C, SIGTERM, room for more workers) or by Ray (a node
will be taken away).

    driver ── StopBoard (an actor beside it) ◄── worker 0 asks      }  a thread a worker, once a POLL_S;
    Ray's control store, "nodes being drained" ◄── every worker asks }  `fit(interrupt=watch)` reads one flag

Invariant: an update never waits for a notice: the loop reads a flag of its own process, and what one worker has seen
rides along in the exchange of gradients, so that all write the checkpoint after the same update. Ray's own
`get_preemption_info` is a barrier over all workers and is not used.

Covered: notices of Ray 2.60 (`ray drain-node`, the autoscaler, a SIGTERM to `ray start`). Not covered: TPU slices.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from cluster.runtime.channel import beside_the_driver
from cluster.runtime.ray_private import draining_nodes

POLL_S = 1.0  # a notice comes 30 s (Azure, GCP) to 120 s (AWS) before the end
ANSWER_S = 10.0
JOB_POLL_S = 0.05


class _Board:
    """Holds what the driver wants."""

    def __init__(self) -> None:
        self._reason = ""
        self._jobs: list[Any] = []

    def give(self, job: Any) -> None:
        self._jobs = [job]

    def jobs(self) -> list[Any]:
        return self._jobs

    def ask(self, reason: str) -> None:
        self._reason = reason

    def asked(self) -> str:
        return self._reason


class StopBoard:
    """The driver's side. Picklable; needs a running Ray session."""

    def __init__(self) -> None:
        self._actor: Any = beside_the_driver(_Board).remote()

    def give(self, job: Any) -> None:
        """What the workers do; None lets them end."""
        self._actor.give.remote(job)

    def wait_for_job(self) -> Any:
        """Called by a worker. Blocks until there is a job. Raises RayError when the driver's node is gone."""
        import ray

        while not (jobs := ray.get(self._actor.jobs.remote())):
            time.sleep(JOB_POLL_S)
        return jobs[0]

    def ask(self, reason: str) -> None:
        """From now on every worker that looks is told to stop. Does not wait."""
        self._actor.ask.remote(reason)

    def asked(self) -> str:
        """Why to stop; empty as long as nobody wants it. Raises RayError when the driver's node is gone."""
        import ray

        return str(ray.get(self._actor.asked.remote(), timeout=ANSWER_S))

    def close(self) -> None:
        """Remove the actor."""
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)


class NoticeWatch:
    """A worker's side: call it to learn whether to stop. `board` on one worker only: one is enough."""

    def __init__(self, board: StopBoard | None) -> None:
        import ray

        self._board = board
        self._node = ray.get_runtime_context().get_node_id()
        self._end = threading.Event()
        self._wanted = False
        self._thread = threading.Thread(target=self._look, name="notices", daemon=True)
        self._thread.start()

    def __call__(self) -> bool:
        return self._wanted

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join(POLL_S)

    def _look(self) -> None:
        from ray.exceptions import RayError

        while not self._end.wait(POLL_S):
            try:
                self._wanted = self._node in draining_nodes() or bool(self._board and self._board.asked())
            except (RayError, ConnectionError):  # the control store or the driver is away: the next look tells more
                continue
            if self._wanted:
                return
