"""Any engine in a process of its own, so that unloading is the end of a process and gives all memory back.

GPU runtimes keep what they once took (onnxruntime#19445, triton-inference-server/server#5841 and others agree on one
cure: end the process); a crash or a wedged kernel also takes one model down, not the replica.

Invariant: a call ends with an answer or an error within `call_timeout_s`; a process that died or was ended is
replaced for the next call, at most `RESTARTS_MAX` times in a row without an answer between them; after `close` the
process is gone.

Wire: one JSON head and the raw tensors over a pipe between parent and child; no pickle but the start of the process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import orjson
import psutil

from cluster.bundle.signature import DATATYPE_OF
from cluster.errors import EndpointError, InferenceError, MantaError, all_error_classes
from serve.engines.engine import EngineRequest
from serve.protocol.tensors import array_of_bytes, bytes_of_array

RESTARTS_MAX = 3
START_TIMEOUT_S = 120.0
BUILD_TIMEOUT_S = 3600.0  # a TensorRT engine that this node does not keep yet is built first
END_TIMEOUT_S = 10.0


class ProcessEngine:
    """An engine of `make_engine` in a child process."""

    def __init__(self, request: EngineRequest, *, call_timeout_s: float = 60.0) -> None:
        self._request = request
        self._call_timeout_s = call_timeout_s
        self._lock = threading.Lock()
        self._deaths = 0
        self._closed = False
        self.failure = ""
        """Why it will never answer again; empty while it can."""
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return int(self._process.pid or 0)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            if self._closed or self.failure:
                raise InferenceError("Cannot run the model", found=self.failure or "its engine is closed")
            if not self._process.is_alive():
                self._restart("it ended between two calls")
            try:
                _send(self._pipe, {"op": "run"}, inputs)
                if not self._pipe.poll(self._call_timeout_s):
                    raise TimeoutError
                head, outputs = _receive(self._pipe)
            except (EOFError, OSError, TimeoutError) as error:
                raise self._died(error) from None
            self._deaths = 0
        if "error" in head:
            raise InferenceError("Cannot run the model", found=head["error"])
        return outputs

    def footprint_bytes(self) -> int | None:
        """What the child holds: host memory on a CPU; on a GPU what its own engine reports."""
        if self._request.device != "cpu":
            return self._told_footprint
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    def close(self) -> None:
        self._closed = True
        self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit CUDA, threads and sockets
        self._pipe, theirs = context.Pipe()
        self._process: Any = context.Process(target=child_main, args=(theirs, self._request), daemon=True)
        self._process.start()
        theirs.close()
        attempted = f"Cannot load {self._request.path.name} in a process of its own"
        try:
            if not self._pipe.poll(START_TIMEOUT_S if self._request.tensorrt is None else BUILD_TIMEOUT_S):
                raise TimeoutError
            head, _ = _receive(self._pipe)
        except (EOFError, OSError, TimeoutError):
            self._end()
            raise EndpointError(attempted, found=f"the process ended with code {self._process.exitcode}") from None
        if "error" in head:
            self._end()
            raise _error_of(head["error"])
        self.platform: str = head["platform"]
        self.preferred_rows = tuple(head["preferred_rows"])
        self._told_footprint = head["footprint_bytes"]

    def _restart(self, why: str) -> None:
        self._end()
        try:
            self._start()
        except MantaError as error:
            self.failure = f"{why}, and its successor did not start: {error.found}"
            raise InferenceError("Cannot run the model", found=self.failure) from error

    def _died(self, error: BaseException) -> InferenceError:
        """End what is left, start a successor for the next call, and say what happened to this one."""
        wedged = isinstance(error, TimeoutError)
        why = f"its process gave no answer in {self._call_timeout_s:g} s" if wedged else "its process died in the call"
        self._deaths += 1
        if self._deaths > RESTARTS_MAX:
            self._end()
            self.failure = f"{why}, {self._deaths} times in a row"
        else:
            self._restart(why)
        return InferenceError("Cannot run the model", found=why, remedy="The request may be sent again.")

    def _end(self) -> None:
        self._pipe.close()
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(END_TIMEOUT_S)


def child_main(pipe: Connection, request: EngineRequest) -> None:
    """The child: load, then answer calls until the parent closes the pipe or dies."""
    from serve.engines import make_engine

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C on the terminal is the parent's to handle
    try:
        engine = make_engine(replace(request))
    except MantaError as error:
        _send(pipe, {"error": error.to_dict()}, {})
        return
    ready = {
        "platform": engine.platform,
        "preferred_rows": list(engine.preferred_rows),
        "footprint_bytes": engine.footprint_bytes(),
    }
    _send(pipe, ready, {})
    while True:
        try:
            _, inputs = _receive(pipe)
        except (EOFError, OSError):
            engine.close()
            return
        try:
            _send(pipe, {}, engine.run(inputs))
        except Exception as error:  # noqa: BLE001 - worker main: the parent turns it into the request's error
            _send(pipe, {"error": f"{type(error).__name__}: {str(error)[:500]}"}, {})


def _error_of(told: dict[str, Any]) -> MantaError:
    """The child's error as the parent's own: the same class, so that a missing package stays one (exit code 3)."""
    kinds = {kind.code: kind for kind in all_error_classes()}
    parts = {name: told[name] for name in ("found", "rule", "remedy", "details")}
    return kinds.get(told["code"], EndpointError)(told["attempted"], **parts)


def _send(pipe: Connection, head: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    tensors = [(name, DATATYPE_OF[array.dtype], array.shape) for name, array in arrays.items()]
    pipe.send_bytes(orjson.dumps({**head, "tensors": tensors}))
    for (_, datatype, _), array in zip(tensors, arrays.values(), strict=True):
        blob = bytes_of_array(array, datatype)
        if blob:
            pipe.send_bytes(blob)


def _receive(pipe: Connection) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    head: dict[str, Any] = orjson.loads(pipe.recv_bytes())
    arrays = {}
    for name, datatype, shape in head.pop("tensors"):
        blob = pipe.recv_bytes() if 0 not in shape else b""
        arrays[name] = array_of_bytes(blob, datatype, tuple(shape), name)
    return head, arrays
