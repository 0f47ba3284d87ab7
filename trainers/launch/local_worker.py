"""One worker that needs no Ray: a process of this host, which can be started before there is anything to train.

Ray Train's controller, placement group and worker process take several times the training of a small table; a run
with one worker on a host of its own gains nothing from them. What training does, writes and reports is the same as in
worker.py, and a dead process is a lost worker that is started again from the last checkpoint.

Invariant: the process ends with its parent, however that ends: at the end of the pipe it exits.

Covered: one worker on a CPU. Not covered: GPUs, several workers, clusters (worker_group.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import MantaError
from cluster.runtime.private.reaper import MARKER_VARIABLE
from trainers.launch.failures import AttemptFailed, Failure, failure_of

if TYPE_CHECKING:  # torch is loaded by the process that trains
    from trainers.loop.request import FitRequest

POLL_S = 0.2
STOP = "stop"
END_TIMEOUT_S = 5.0
SHARED_CORES = {"OMP_WAIT_POLICY": "passive"}
"""While it trains, Ray and Serve start on the same cores. Threads that spin at a barrier for one that has no core cost
small networks much: 600 updates of 64 rows take 0.2 s with one thread, 0.8 to 1.6 s with two, 0.3 s when they sleep."""


class LocalWorker:
    """The parent's side: a process that loads torch and the loop, then waits for a job."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        command = [sys.executable, "-m", "trainers.launch.local_worker", str(number)]
        environment = {**SHARED_CORES, **os.environ}
        environment.pop(MARKER_VARIABLE, None)  # it ends with its parent, and not with a Ray that could not start
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(number,), env=environment)
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def assign(self, request: FitRequest, events: Path, folder: Path) -> None:
        """Send the job; it begins at once."""
        with suppress(OSError):  # of a process that died: `wait` raises it
            self._pipe.send((request, str(events), str(folder)))

    def wait(self) -> None:
        """Block until the job is done. Raises AttemptFailed, also for a process that died."""
        try:
            while not self._pipe.poll(POLL_S):
                if self._process.poll() is not None and not self._pipe.poll(0):
                    raise EOFError
            error = self._pipe.recv()
        except (EOFError, OSError):
            code = self._ended()
            how = f"signal {-code}" if code < 0 else f"code {code}"
            found = EOFError(f"the training process ended with {how}")
            raise AttemptFailed(Failure("lost", str(found), found, rank=0)) from None
        if error is not None:
            raise AttemptFailed(error)

    def stop(self, wait_s: float) -> None:
        """Ask for a last checkpoint, and wait until the process has ended or the time is up. Blocks."""
        try:
            self._pipe.send(STOP)
        except OSError:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _ended(self) -> int:
        """The exit code of a process whose end of the pipe is shut."""
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def worker_main(pipe: Connection) -> None:
    """The process: load what training needs, wait for the job, train, answer with the failure or None, end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop, by the pipe
    import torch

    from cluster.telemetry.events import FileSink
    from trainers.launch.worker import threads_per_worker
    from trainers.loop import fit
    from trainers.loop.result import write_result

    try:
        request, events, folder = pipe.recv()
    except EOFError:
        return
    stopping = threading.Event()
    threading.Thread(target=_listen, args=(pipe, stopping), name="notices", daemon=True).start()
    torch.set_num_threads(threads_per_worker(1))
    try:
        result = fit(request, sink=FileSink(Path(events)), device=torch.device("cpu"), interrupt=stopping.is_set)
        write_result(Path(folder), result)
    except MantaError as error:
        pipe.send(failure_of(error, rank=0))
    except Exception as error:  # noqa: BLE001 - worker main: the class may not be known to the parent, its text is
        pipe.send(Failure("bug", f"{type(error).__name__}: {error}", _plain(error), _traceback(error), rank=0))
    else:
        pipe.send(None)


def _listen(pipe: Connection, stopping: threading.Event) -> None:
    """Until the parent requests a stop; at the end of the pipe the process ends with its parent."""
    try:
        if pipe.recv() == STOP:
            stopping.set()
            pipe.recv()
    except (EOFError, OSError):
        os._exit(1)  # what is on disk is whole at any moment


def _plain(error: BaseException) -> BaseException:
    return RuntimeError(f"{type(error).__name__}: {error}")


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


if __name__ == "__main__":
    worker_main(Connection(int(sys.argv[1])))
