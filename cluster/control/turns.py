"""Whose turn it is on a shared cluster that has no control plane: the scheduler over what Ray shows.

    drivers ask, again and again ──► Turns ── state of (View, who asked) ──► decide ──► granted, or why not

Invariant: soft state. All that is kept here comes again with the next question of each driver, so that a new `Turns`
knows within seconds what the old one knew. A run whose turn it is goes before all others until its workers stand.

Covered: training's workers of Manta's runs by priority, then in the order of their jobs' submission; what others hold
is seen as held. Not covered: Ray itself (queue.py), quotas (nobody can write them down yet), GPU memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.control.policy import Policy, total_of
from cluster.control.reasons import explain
from cluster.control.rooms import Need, Room, Rooms, Share
from cluster.control.scheduler import decide
from cluster.control.state import ClusterState, Request, Running

FORGOTTEN_S = 20.0  # drivers ask every second, and every five while they hold their turn
GRANTED = 1 << 30  # a priority above all others
OTHERS = "others"
"""Who holds what is neither free nor in a job's placement groups: endpoints, tasks and actors by themselves."""


@dataclass(frozen=True)
class Asked:
    """A driver's question."""

    job: str
    """Its Ray job's id."""
    run: str
    workers: int
    priority: int = 0


@dataclass(frozen=True)
class Answer:
    """Whether its workers may start now."""

    granted: bool
    reason: str = ""
    """Why not, in words."""


@dataclass(frozen=True)
class SeenJob:
    """A job that lives on the cluster."""

    since_unix_s: float
    run: str = ""
    shares: tuple[Share, ...] = ()
    """What its placement groups hold."""


@dataclass(frozen=True)
class View:
    """A cluster as Ray shows it."""

    hosts: Mapping[str, Room]
    free: Mapping[str, Room]
    jobs: Mapping[str, SeenJob]

    def worker(self, workers: int) -> Need:
        """What workers need: a GPU each where the cluster has any."""
        return Need(workers, gpus=1 if total_of(Rooms(self.hosts)).gpus else 0)


@dataclass
class Turns:
    """Who has asked, and who may start."""

    policy: Policy = field(default_factory=Policy)
    _asked: dict[str, tuple[Asked, float]] = field(default_factory=dict)
    """By job, with the time of the last question."""
    _granted: dict[str, float] = field(default_factory=dict)
    """Job -> since when it is its turn."""

    def ask(self, asked: Asked, view: View, now_s: float, *, holds: bool = False) -> Answer:
        """`holds`: the driver has been granted its turn, whoever remembers it."""
        self._asked[asked.job] = (asked, now_s)
        if holds:
            self._granted.setdefault(asked.job, now_s)
        self._forget(view, now_s)
        state = self._state(view, now_s)
        decisions = decide(state, self.policy, now_s)
        for start in decisions.starts:
            self._granted.setdefault(start.request.id, now_s)
        if asked.job in self._granted:
            return Answer(True)
        request = self._request(asked, view, now_s)
        reason = explain(state.applied(decisions, now_s), self.policy, decisions, request, now_s)
        return Answer(False, self._named(reason, view))

    def leave(self, job: str) -> None:
        """Its workers have ended, or it wants none any more."""
        self._asked.pop(job, None)
        self._granted.pop(job, None)

    def wanted_workers(self, now_s: float) -> int:
        """Of all who ask, as long as somebody waits; else 0."""
        asking = [asked for asked, last_s in self._asked.values() if now_s - last_s <= FORGOTTEN_S]
        waits = any(asked.job not in self._granted for asked in asking)
        return sum(asked.workers for asked in asking) if waits else 0

    def _forget(self, view: View, now_s: float) -> None:
        for job, (_, last_s) in list(self._asked.items()):
            if job not in view.jobs or now_s - last_s > FORGOTTEN_S:
                self.leave(job)

    def _state(self, view: View, now_s: float) -> ClusterState:
        """A turn whose workers do not stand yet waits before all others, so that nobody takes its room."""
        hosts, free = Rooms(view.hosts), Rooms(_free(view))
        running = {job: self._running(job, seen, now_s) for job, seen in view.jobs.items() if seen.shares}
        if others := _others(view):
            running[OTHERS] = self._running(OTHERS, SeenJob(now_s, OTHERS, others), now_s)
        ends = tuple(sorted((run.ends_s, job) for job, run in running.items()))
        state = ClusterState(hosts, free, running, ends=ends)
        for job, (asked, _) in self._asked.items():
            if job not in self._granted or not _stands(view.worker(asked.workers), view.jobs[job].shares):
                state = state.with_request(self._request(asked, view, now_s))
        return state

    def _request(self, asked: Asked, view: View, now_s: float) -> Request:
        seen = view.jobs.get(asked.job)
        since_s = seen.since_unix_s if seen else now_s
        priority = GRANTED if asked.job in self._granted else asked.priority
        return Request(asked.job, view.worker(asked.workers), since_s, priority=priority)

    def _running(self, job: str, seen: SeenJob, now_s: float) -> Running:
        since_s = self._granted.get(job, seen.since_unix_s)
        held = Need(cpus=sum(share.cpus for share in seen.shares), gpus=sum(len(share.gpus) for share in seen.shares))
        return Running(Request(job, held, since_s), seen.shares, since_s, max(now_s, since_s + self.policy.duration_s))

    def _named(self, text: str, view: View) -> str:
        """With runs' names in place of job ids."""
        names = {job: seen.run for job, seen in view.jobs.items()} | {job: a.run for job, (a, _) in self._asked.items()}
        for job, name in names.items():
            text = text.replace(job, name or f"of job {job}")
        return text.replace(f"run {OTHERS} holds", "others hold").replace(f"run {OTHERS}", OTHERS)


def _stands(need: Need, shares: tuple[Share, ...]) -> bool:
    """Whether a job holds as much as its workers need."""
    cpus, gpus = sum(share.cpus for share in shares), sum(len(share.gpus) for share in shares)
    return cpus >= need.all_cpus and gpus >= need.all_gpus


def _held(view: View, host: str) -> Room:
    shares = [share for seen in view.jobs.values() for share in seen.shares if share.host == host]
    return Room(sum(share.cpus for share in shares), tuple(gpu for share in shares for gpu in share.gpus))


def _free(view: View) -> dict[str, Room]:
    """What is free by both accounts: a node reports with a delay what a group has just got there."""
    found = {}
    for host, whole in view.hosts.items():
        held, free = _held(view, host), view.free[host]
        gpus = max(0, min(len(free.gpus), len(whole.gpus) - len(held.gpus)))
        found[host] = Room(max(0.0, min(free.cpus, whole.cpus - held.cpus)), free.gpus[:gpus])
    return found


def _others(view: View) -> tuple[Share, ...]:
    shares = []
    for host, whole in view.hosts.items():
        held, free = _held(view, host), view.free[host]
        cpus, gpus = whole.cpus - held.cpus - free.cpus, len(whole.gpus) - len(held.gpus) - len(free.gpus)
        if cpus > 0 or gpus > 0:
            shares.append(Share(host, 0, max(0.0, cpus), whole.gpus[: max(0, gpus)]))
    return tuple(shares)
