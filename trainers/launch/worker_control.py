"""How the driver hands workers their job, and how they learn that they are to stop: from the driver (Ctrl-C, SIGTERM,
room for more workers) or from Ray (a node will be taken away).

    driver ── WorkerControl (an actor beside it) ◄── worker 0 polls       } a thread a worker, once a POLL_S;
    Ray's control store, "nodes being drained"   ◄── every worker polls   } `fit(interrupt=watcher)` reads one flag

Invariant: an update never waits for a notice: the loop reads a flag of its own process, and the exchange of gradients
has the flags of all, so that all write the checkpoint after the same update. Ray's own `get_preemption_info` is a
barrier over all workers and is not used.

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


class _ControlActor:
    """The job, and why to stop."""

    def __init__(self) -> None:
        self._reason = ""
        self._jobs: list[Any] = []
        self._asked = False

    def assign(self, job: Any) -> None:
        self._jobs = [job]

    def jobs(self) -> list[Any]:
        self._asked = True
        return self._jobs

    def asked(self) -> bool:
        return self._asked

    def request_stop(self, reason: str) -> None:
        self._reason = reason

    def stop_reason(self) -> str:
        return self._reason


class WorkerControl:
    """The driver's side. Picklable; needs a running Ray session."""

    def __init__(self) -> None:
        self._actor: Any = beside_the_driver(_ControlActor).remote()

    def assign(self, job: Any) -> None:
        """The job of all workers; None lets them end."""
        self._actor.assign.remote(job)

    def wait_for_job(self) -> Any:
        """Called by a worker. Blocks until there is a job. Raises RayError when the driver's node is gone."""
        import ray

        while not (jobs := ray.get(self._actor.jobs.remote())):
            time.sleep(JOB_POLL_S)
        return jobs[0]

    def workers_stand(self) -> bool:
        """Whether a worker has asked for its job: then all of them have room, and a process group. Blocks on a call."""
        import ray

        return bool(ray.get(self._actor.asked.remote(), timeout=ANSWER_S))

    def request_stop(self, reason: str) -> None:
        """Workers stop at their next poll. Does not wait."""
        self._actor.request_stop.remote(reason)

    def stop_reason(self) -> str:
        """Why to stop; empty while there is no request. Raises RayError when the driver's node is gone."""
        import ray

        return str(ray.get(self._actor.stop_reason.remote(), timeout=ANSWER_S))

    def close(self) -> None:
        """Remove the actor."""
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)


class StopWatcher:
    """A worker's side; calling it returns whether to stop. `control` on one worker only: one is enough."""

    def __init__(self, control: WorkerControl | None) -> None:
        import ray

        self._control = control
        self._node = ray.get_runtime_context().get_node_id()
        self._end = threading.Event()
        self._wanted = False
        self._thread = threading.Thread(target=self._poll, name="notices", daemon=True)
        self._thread.start()

    def __call__(self) -> bool:
        return self._wanted

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join(POLL_S)

    def _poll(self) -> None:
        from ray.exceptions import RayError

        while not self._end.wait(POLL_S):
            try:
                self._wanted = self._node in draining_nodes() or bool(self._control and self._control.stop_reason())
            except (RayError, ConnectionError):  # the control store or the driver is away: the next poll decides
                continue
            if self._wanted:
                return
