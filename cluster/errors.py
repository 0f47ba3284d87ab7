"""Every error that Manta raises on purpose, as one tree with stable codes.

    MantaError                      exit 1
    ├── RequestError                exit 2   the request is wrong: change the spec, the data or the command
    │   ├── SpecError                        the YAML or an override
    │   ├── DataError                        a source, a column, a split
    │   ├── ModelError                       a model that cannot be built, trained or exported as asked
    │   ├── BundleError                      a bundle that is missing, changed or of another format
    │   └── ProtocolError                    a request to an endpoint that breaks the protocol or its limits
    ├── ResourceError               exit 3   the request is fine; this place cannot carry it out
    │   ├── MissingDependencyError           an optional package; names the extra
    │   ├── DiskFullError
    │   ├── MemoryShortError                 host memory, GPU memory or /dev/shm
    │   ├── PortInUseError
    │   ├── ClusterUnreachableError          a Ray cluster that does not answer, is stale or refuses
    │   └── OverloadedError                  an endpoint that is full, not ready, or past a request's deadline
    └── RunError                    exit 1   started well, ended badly
        ├── StageFailedError                 a stage raised something that is not ours
        ├── WorkerLostError                  a worker process or node died
        ├── PeerFailedError                  another worker failed; its traceback is in the details
        ├── DivergedError                    non-finite loss or gradients past the budget
        ├── CheckpointError                  no checkpoint can be read
        ├── EndpointError                    an endpoint that does not become ready or answers wrongly
        ├── InferenceError                   an engine raised, or its answer is not usable
        ├── ReplacedRunError                 another driver has taken the run over
        └── InterruptedRunError              Ctrl-C or SIGTERM; the run can be resumed

Invariant: an error says what was attempted, what was found, the rule and the remedy, and survives pickle
(Ray sends errors between processes).

Covered: construction, message, exit code, pickle. Not covered: printing (cluster/command.py).
"""

from __future__ import annotations

from typing import Any, ClassVar


class MantaError(Exception):
    """Base of all errors that Manta raises on purpose.

    Args:
        attempted: what was tried, as the start of a sentence (`Cannot load bundle 'digits'`).
        found: what was seen instead, with values.
        rule: the rule that was broken; may be empty where `found` says it all.
        remedy: what the user can do now.
        details: JSON-able facts for `--json` (paths, numbers); never needed to understand the message.
    """

    code: ClassVar[str] = "MANTA"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        attempted: str,
        *,
        found: str,
        rule: str = "",
        remedy: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        self.attempted = attempted
        self.found = found
        self.rule = rule
        self.remedy = remedy
        self.details = details or {}
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The four parts as two sentences: what was attempted and found, and the rule; then the remedy."""
        found = self.found.strip().removesuffix(".") if self.rule else self.found
        head = f"{self.attempted}: {found}" + (f"; {self.rule}" if self.rule else "")
        return " ".join(_sentence(part) for part in (head, self.remedy) if part)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form for `--json` and the event stream."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "attempted": self.attempted,
            "found": self.found,
            "rule": self.rule,
            "remedy": self.remedy,
            "details": self.details,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "found": self.found,
            "rule": self.rule,
            "remedy": self.remedy,
            "details": self.details,
        }
        return (_rebuild, (type(self), self.attempted, state))


class RequestError(MantaError):
    """The request is wrong: change the spec, the data or the command."""

    code = "REQUEST"
    exit_code = 2


class SpecError(RequestError):
    """The YAML or an override breaks a rule. `problems` lists every broken rule, not only the first."""

    code = "SPEC"

    @property
    def problems(self) -> list[dict[str, Any]]:
        """One entry a problem: `path`, `value`, `rule`, `nearest`."""
        return list(self.details.get("problems", []))


class DataError(RequestError):
    """A source, a column or a split cannot be used as asked."""

    code = "DATA"


class ModelError(RequestError):
    """A model cannot be built, trained, compressed or exported as asked."""

    code = "MODEL"


class BundleError(RequestError):
    """A bundle is missing, was changed, or has another format version."""

    code = "BUNDLE"


class ProtocolError(RequestError):
    """A request to an endpoint breaks the protocol or one of its limits. `details["status"]` is its HTTP status."""

    code = "PROTOCOL"


class ResourceError(MantaError):
    """The request is fine; this place cannot carry it out."""

    code = "RESOURCE"
    exit_code = 3


class MissingDependencyError(ResourceError):
    """An optional package is not installed; the remedy names the extra."""

    code = "DEPENDENCY"


class DiskFullError(ResourceError):
    """The disk has no room; what was already written stays whole."""

    code = "DISK"


class MemoryShortError(ResourceError):
    """Host memory, GPU memory or shared memory is too small; the message names who holds it where known."""

    code = "MEMORY"


class PortInUseError(ResourceError):
    """A port is taken; the message names the holder where known."""

    code = "PORT"


class ClusterUnreachableError(ResourceError):
    """A Ray cluster does not answer, is stale, or refuses the token."""

    code = "CLUSTER"


class OverloadedError(ResourceError):
    """An endpoint refuses for now: its queue is full, it is not ready, or the request's deadline has passed."""

    code = "OVERLOAD"


class RunError(MantaError):
    """The run started well and ended badly."""

    code = "RUN"


class StageFailedError(RunError):
    """A stage raised an error that is not one of these; the traceback is in the run's log."""

    code = "STAGE"


class WorkerLostError(RunError):
    """A worker process or node died more often than the budget allows."""

    code = "WORKER"


class PeerFailedError(RunError):
    """Another worker failed, and all stop together; `details` has its rank and traceback."""

    code = "PEER"


class DivergedError(RunError):
    """Loss or gradients were not finite past the budget."""

    code = "DIVERGED"


class CheckpointError(RunError):
    """No checkpoint of the run can be read."""

    code = "CHECKPOINT"


class EndpointError(RunError):
    """An endpoint did not become ready, or answered wrongly."""

    code = "ENDPOINT"


class InferenceError(RunError):
    """An engine raised, or gave rows that are missing or not finite."""

    code = "INFERENCE"


class ReplacedRunError(RunError):
    """Another driver writes into the run's folder now; this one ends without a word there."""

    code = "REPLACED"


class InterruptedRunError(RunError):
    """Ctrl-C or SIGTERM; everything written is whole and the same command resumes."""

    code = "INTERRUPTED"


def summary_of(error: BaseException) -> str:
    """Class and first line of an error that is not ours."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def all_error_classes() -> list[type[MantaError]]:
    """The tree above, parents before children: for the generated reference page and its test."""
    found: list[type[MantaError]] = []

    def visit(cls: type[MantaError]) -> None:
        found.append(cls)
        for child in cls.__subclasses__():
            visit(child)

    visit(MantaError)
    return found


def _rebuild(cls: type[MantaError], attempted: str, state: dict[str, Any]) -> MantaError:
    return cls(attempted, **state)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
