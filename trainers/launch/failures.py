"""What ended an attempt: the class of a failure decides whether trying again can help.

    lost        a worker, its node or the controller died     again, within train.faults.worker_restarts
    waiting     Ray Train stopped waiting for room            again, as often as it takes
    stopped     a request to stop, or a node taken away       again, within train.faults.preemptions
    ours        another error of cluster.errors               never: its text has the remedy
    bug         anything else that a worker raised            never: it would come again; its traceback is shown

Invariant: when several workers failed, the culprit is reported, not those that only noticed. Waiting for room costs
nothing. No budget is infinite but that of growing, which only ever happens from fewer workers to more.

Covered: Ray Train 2.60's errors.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import InterruptedRunError, MantaError, ModelError, PeerFailedError, WorkerLostError
from cluster.runtime.ray_private import error_of_worker, preemption_class, start_timeout_class, train_error_class
from cluster.spec.train import FaultSpec


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended."""

    kind: str
    """`lost`, `waiting`, `stopped`, `ours` or `bug`."""
    text: str
    error: BaseException
    traceback: str = ""
    rank: int | None = None


class AttemptFailed(Exception):
    """An attempt at training ended; what decides about another one is `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def failure_of(error: MantaError, rank: int | None = None) -> Failure:
    """Of an error of ours that a worker raised."""
    return Failure(_kind(error), f"{type(error).__name__}: {error}", error, rank=rank)


def classify(error: BaseException) -> Failure:
    """Of what `TorchTrainer.fit` raised."""
    from ray.exceptions import RayError

    if isinstance(error, preemption_class()):
        return Failure("stopped", _first_line(error), error)
    of_ray = (RayError, train_error_class())
    causes = {rank: _unwrap(item) for rank, item in getattr(error, "worker_failures", {}).items()}
    bugs = []
    for rank, (cause, text) in sorted(causes.items()):
        if isinstance(cause, (PeerFailedError, WorkerLostError, *of_ray)):
            continue
        kind = _kind(cause)
        bugs.append(Failure(kind, f"{type(cause).__name__}: {cause}", cause, text, rank))
    if bugs:
        return bugs[0]
    for rank, (cause, text) in sorted(causes.items()):
        if isinstance(cause, PeerFailedError):  # the culprit's own report did not arrive
            kind = "lost" if "WorkerLostError" in cause.found else "bug"
            return Failure(kind, cause.found, cause, cause.details.get("traceback", text), cause.details.get("rank"))
        if isinstance(cause, of_ray):
            kind = "stopped" if getattr(cause, "preempted", False) else "lost"
            return Failure(kind, f"worker {rank} died: {_first_line(cause)}", cause, text, rank)
    if causes:
        rank, (cause, text) = next(iter(sorted(causes.items())))
        return Failure("lost", _first_line(cause), cause, text, rank)
    inner = getattr(error, "controller_failure", error)
    if isinstance(inner, start_timeout_class()):
        return Failure("waiting", "there is no room for the workers yet", inner)
    if isinstance(inner, MantaError):
        return Failure(_kind(inner), str(inner), inner)
    return Failure("lost", f"the training controller ended: {type(inner).__name__}: {_first_line(inner)}", inner)


@dataclass
class Budget:
    """What has been tried again so far."""

    faults: FaultSpec
    restarts: int = 0
    preemptions: int = 0

    def spend(self, failure: Failure, *, growing: bool) -> str:
        """Take one try from the budget of this failure; returns the message for the user. Raises where none is left, or
        where trying again cannot help."""
        if failure.kind == "waiting":
            return f"{failure.text}; the run goes on waiting"
        if failure.kind == "stopped" and growing:
            return "there is room for more workers; they start anew from the checkpoint just written"
        if failure.kind == "stopped" and self.preemptions < self.faults.preemptions:
            self.preemptions += 1
            return (
                f"a node will be taken away; restart {self.preemptions} of {self.faults.preemptions} for this cause, "
                "from the checkpoint just written"
            )
        if failure.kind == "stopped":
            raise_failure(failure, self.preemptions)
        if failure.kind != "lost" or self.restarts >= self.faults.worker_restarts:
            raise_failure(failure, self.restarts)
        self.restarts += 1
        return f"{failure.text}; restart {self.restarts} of {self.faults.worker_restarts} from the last checkpoint"


def raise_failure(failure: Failure, restarts: int) -> None:
    """Raise what the user should see."""
    if isinstance(failure.error, MantaError) and failure.kind in ("ours", "stopped"):
        raise failure.error
    if failure.kind != "bug":
        budget = "preemptions" if failure.kind == "stopped" else "worker_restarts"
        raise WorkerLostError(
            "Cannot train",
            found=f"after {restarts} restarts {failure.text}",
            rule=f"train.faults.{budget} says how often workers are started again",
            remedy="Look for the worker's end in ray-logs/ (memory is the usual cause), then run the same command "
            "again: it goes on from the last checkpoint.",
        ) from failure.error
    raise ModelError(
        "Cannot train",
        found=f"worker {failure.rank} raised {failure.text}",
        rule="an error of the model or objective is not tried again",
        remedy=f"Mend the cause:\n{failure.traceback}",
        details={"rank": failure.rank, "traceback": failure.traceback},
    ) from failure.error


def _kind(error: BaseException) -> str:
    if isinstance(error, InterruptedRunError):
        return "stopped"
    return "ours" if isinstance(error, MantaError) else "bug"


def _unwrap(error: BaseException) -> tuple[BaseException, str]:
    """Ray hands on what a worker raised without its traceback; the worker has noted that on the error."""
    base = error_of_worker(error)
    return base, "\n".join(getattr(base, "__notes__", [])) or str(error)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
