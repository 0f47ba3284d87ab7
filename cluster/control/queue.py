"""The queue of a cluster that several runs share: one named actor that all drivers ask for their turn.

    with turn("digits", 4, say):      blocks until the workers of run `digits` have their room, whole
        …                             holds the turn while they train

Invariant: the queue keeps nothing that its drivers do not know (turns.py); one that is lost is made anew by whoever
asks next. A driver that gets no answer for a minute goes on without a turn, and says so: as if there were no queue.

Covered: Ray 2.60, drivers on any host, hosts that an autoscaler adds. Not covered: a private Ray, which one run has for
itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from cluster.control.rooms import Room, Share
from cluster.control.turns import FORGOTTEN_S, Answer, Asked, SeenJob, Turns, View
from cluster.runtime.ray_private import draining_nodes, free_resources_of_nodes, living_jobs

NAME, NAMESPACE = "manta-queue-1", "manta"  # another number where questions or answers have changed
POLL_S, HOLD_POLL_S = 1.0, 5.0
ANSWER_S = 15.0  # the first worker process on a busy node takes seconds
LOST_S = 60.0


class _Queue:
    """The actor."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._lock = threading.Lock()
        # of the autoscaler; a queue that starts anew does not know what the one before has requested
        self._requested = -1 if ray.get_runtime_context().was_current_actor_reconstructed else 0
        threading.Thread(target=self._watch, name="hosts", daemon=True).start()

    def ask(self, asked: Asked, holds: bool) -> Answer:
        with self._lock:
            view = read_view()
            answer = self._turns.ask(asked, view, time.time(), holds=holds)
            self._request_hosts(view)
            return answer

    def leave(self, job: str) -> None:
        with self._lock:
            self._turns.leave(job)

    def _watch(self) -> None:
        """Drivers that have died ask no more: their hosts are not wanted any longer."""
        while True:
            time.sleep(FORGOTTEN_S)
            if self._requested > 0:
                with self._lock:
                    self._request_hosts(read_view())

    def _request_hosts(self, view: View) -> None:
        """Of Ray's autoscaler, if there is one: it sees what waits in Ray, and those who wait here do not."""
        workers = self._turns.wanted_workers(time.time())
        if workers != self._requested:
            from ray.autoscaler.sdk import request_resources  # drivers do without

            need = view.worker(1)
            bundle = {"CPU": need.cpus, **({"GPU": need.gpus} if need.gpus else {})}
            request_resources(bundles=[bundle] * workers)
            self._requested = workers


def read_view() -> View:
    """What Ray shows of its cluster, without nodes that are being drained. Blocks on calls of the head."""
    out = draining_nodes()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in out}
    free, names = free_resources_of_nodes(), _names(nodes)
    jobs = {
        job.id: SeenJob(
            job.since_unix_s,
            job.run,
            tuple(_share(names[node], held) for node, held in job.held.items() if node in names),
        )
        for job in living_jobs()
    }
    return View(
        hosts={names[node_id]: _room(node["Resources"]) for node_id, node in nodes.items()},
        free={names[node_id]: _room(free.get(node_id, {})) for node_id in nodes},
        jobs=jobs,
    )


def _names(nodes: dict[str, Any]) -> dict[str, str]:
    """Node id -> its address; with a part of the id where several have one address."""
    addresses = [node["NodeManagerAddress"] for node in nodes.values()]
    return {
        node_id: f"{address} ({node_id[:6]})" if addresses.count(address) > 1 else address
        for node_id, address in zip(nodes, addresses, strict=True)
    }


@contextmanager
def turn(run: str, workers: int, say: Callable[[str], None], *, priority: int = 0) -> Iterator[None]:
    """Hold the run's turn. Blocks until it has come; `say` gets the reason whenever it has changed. Needs a session."""
    asked = Asked(ray.get_runtime_context().get_job_id(), run, workers, priority)
    asker = _Asker(asked)
    try:
        _wait(asker, say)
        with asker.held():
            yield
    finally:
        asker.leave()


def _wait(asker: _Asker, say: Callable[[str], None]) -> None:
    said, last_s = "", time.monotonic()
    while True:
        answer = asker.ask(holds=False)
        if answer is not None:
            last_s = time.monotonic()
            if answer.granted:
                break
            if answer.reason != said:
                said = answer.reason
                say(said)
        elif time.monotonic() - last_s > LOST_S:
            say("the cluster's queue does not answer: the workers start without waiting for their turn")
            return
        time.sleep(POLL_S)
    if said:
        say("it is this run's turn")


class _Asker:
    """A driver's connection to the queue."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._over = threading.Event()

    def ask(self, *, holds: bool) -> Answer | None:
        """None for no answer. Blocks for `ANSWER_S` at most."""
        try:
            answer: Answer = ray.get(_actor().ask.remote(self._asked, holds), timeout=ANSWER_S)
        except (ray.exceptions.RayError, TimeoutError):
            return None
        return answer

    @contextmanager
    def held(self) -> Iterator[None]:
        """Ask on while the turn is held: the queue may be new by now."""
        thread = threading.Thread(target=self._hold, name="turn", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(ANSWER_S)

    def leave(self) -> None:
        """The next one need not wait until this one is forgotten."""
        with suppress(ray.exceptions.RayError, ValueError):
            _actor().leave.remote(self._asked.job)

    def _hold(self) -> None:
        while not self._over.wait(HOLD_POLL_S):
            self.ask(holds=True)


def _actor() -> Any:
    """The cluster's queue, made where there is none."""
    made: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Queue)
    return made.options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True).remote()


def _room(resources: dict[str, float]) -> Room:
    return Room(resources.get("CPU", 0.0), (0.0,) * int(resources.get("GPU", 0.0)))


def _share(host: str, held: dict[str, float]) -> Share:
    return Share(host, 0, held.get("CPU", 0.0), (0.0,) * int(held.get("GPU", 0.0)))
