"""How TensorRT is asked and how it says no: logger, recorder, version, and one error for every kind of refusal.

TensorRT signals nearly every failure by None, False or -1, and a factory that fails by a bare TypeError. Whoever calls
it (trainers/export/tensorrt.py builds, serve/engines/tensorrt.py runs) goes through `need` and `make` here.

Invariant: no refusal passes unseen, and each ends in one error with the logger's lines and the recorder's codes. The
module is handed in: nothing here imports it.

Covered: TensorRT 10 and 11 (names checked against the real bindings of both, tests/contract/tensorrt_tests).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from cluster.errors import MantaError, MissingDependencyError, ModelError

MAJORS = (10, 11)
INSTALL = "Install the extra: pip install 'manta-ml[gpu]' (NVIDIA's own index has the libraries)."
LOG_LINES_MAX = 200
ERRORS_MAX = 200
ERROR_LINES_SHOWN = 6


def check_version(trt: Any) -> int:
    """The major version. Raises MissingDependencyError for one whose API differs."""
    major = int(str(trt.__version__).split(".")[0])
    if major not in MAJORS:
        raise MissingDependencyError(
            "Cannot use TensorRT",
            found=f"version {trt.__version__}",
            rule=f"major versions {', '.join(map(str, MAJORS))} are supported",
            remedy=INSTALL,
        )
    return major


class TensorRtCalls:
    """Logger and recorder of one build or one loaded engine, and the one way in which its calls fail."""

    def __init__(self, trt: Any, *, attempted: str = "Cannot use TensorRT", error: type[MantaError] = ModelError):
        check_version(trt)
        self.trt = trt
        self.logger = make_logger(trt)
        self.recorder = make_recorder(trt)
        self._attempted = attempted
        self._error = error

    def make(self, call: str, factory: Callable[[], Any], hint: str = "") -> Any:
        """What `factory` makes. The bindings raise TypeError where the library returns no object."""
        try:
            return self.need(factory(), call, hint)
        except TypeError as error:
            raise self.error(
                call, hint or "no usable GPU, driver or library: " + " ".join(str(error).split())
            ) from None

    def need(self, value: Any, call: str, hint: str = "") -> Any:
        """`value` unless it is None, False or negative, which are TensorRT's ways to say no."""
        if value is None or value is False or (isinstance(value, int) and value < 0):
            raise self.error(call, hint)
        return value

    def error(self, call: str, hint: str = "") -> MantaError:
        """The error of a refused call, with every message that TensorRT logged about it."""
        codes = [f"{code}: {text}" for code, text in self.recorder.errors[-ERROR_LINES_SHOWN:]]
        found = "; ".join((*([hint] if hint else []), *codes, *self.logger.lines[-ERROR_LINES_SHOWN:]))
        return self._error(
            f"{self._attempted} (TensorRT {self.trt.__version__}): {call} failed",
            found=found or "it gave no reason",
            rule="engines are built for one GPU, one TensorRT version and one range of shapes",
            remedy="Build the engine again on this node, or serve the ONNX variant.",
        )


def make_logger(trt: Any) -> Any:
    """An ILogger that keeps warnings and errors in `.lines`."""

    class Lines(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING and len(self.lines) < LOG_LINES_MAX:
                self.lines.append(text.strip())

    return Lines()


def make_recorder(trt: Any) -> Any:
    """A thread-safe IErrorRecorder that keeps `(code, text)` in `.errors`: TensorRT reports from its own threads."""

    class Errors(trt.IErrorRecorder):
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.errors: list[tuple[Any, str]] = []
            self._lock = threading.Lock()

        def clear(self) -> None:
            with self._lock:
                self.errors.clear()

        def num_errors(self) -> int:
            return len(self.errors)

        def get_error_code(self, index: int) -> Any:
            return self.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.errors[index][1]

        def has_overflowed(self) -> bool:
            return len(self.errors) >= ERRORS_MAX

        def report_error(self, code: Any, text: str) -> bool:
            with self._lock:
                if len(self.errors) < ERRORS_MAX:
                    self.errors.append((code, text))
            return False  # True would tell TensorRT that the error is fatal and may end the process' work

    return Errors()
