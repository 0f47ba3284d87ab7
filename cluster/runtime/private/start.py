"""Start a Ray for one driver, and end it.

Invariant: a private Ray leaves no process, port, shared memory or folder behind, whether the driver returns, raises, is
interrupted or is killed; it never meets another Ray of the machine (own ports, own folder, own token), and writes
nothing into the user's home.

Covered: start, a second try, end, logs. Not covered: what a killed driver leaves (reaper.py).
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from cluster.errors import ResourceError, summary_of
from cluster.runtime.join.token import MODE_VARIABLE, TOKEN_VARIABLE
from cluster.runtime.nodes.gpu_memory import node_resources
from cluster.runtime.private.haproxy import private_haproxy
from cluster.runtime.private.reaper import MARKER_VARIABLE, PrivatePlace, Reaper
from cluster.runtime.private.shared_memory import object_store_bytes, shared_memory_free_bytes
from cluster.runtime.ray_private import authentication_variables, temporary_folder_argument
from cluster.temporary import SHARED_VARIABLE, scratch_folder, shared_base

LOG = logging.getLogger(__name__)
KERNELS_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch/_inductor/runtime/cache_dir_utils.py; its default is in TMPDIR
LOCAL_LOGICAL_CPUS_MIN = 8  # logical: a laptop's two cores must hold the drivers, workers and replicas of one run
# A Unix socket's path holds 107 characters; Ray's part of it is
# "/manta-abcdefgh/r/session_2026-11-24_08-42-17_587580_4194304/sockets/plasma_store" = 81
TEMPORARY_FOLDER_CHARACTERS_MAX = 107 - 81


@contextmanager
def private_ray(logs: Path | None) -> Iterator[str]:
    """Start a Ray that nobody else can join, and end it with all that belongs to it. Yields its address.

    `logs`: folder that receives its log files. Raises MemoryShortError, ResourceError.
    """
    store_bytes = object_store_bytes(shared_memory_free_bytes)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(base=_short_temporary_folder()))
        serve_folder = stack.enter_context(private_haproxy())
        place = PrivatePlace(
            secrets.token_hex(8), (folder, serve_folder), folder / "r", logs, os.getpid(), os.getsid(0)
        )
        stack.callback(Reaper(place).finish)
        own = {MARKER_VARIABLE: place.marker, **_temporary_environment(folder / "t")}
        if MODE_VARIABLE not in os.environ:
            own |= {MODE_VARIABLE: "token", TOKEN_VARIABLE: secrets.token_hex(32)}
        stack.enter_context(authentication_variables(own))
        _start(stack, _local_arguments(place.sessions, store_bytes))
        yield ray.get_runtime_context().gcs_address


def _start(stack: ExitStack, arguments: dict[str, Any]) -> None:
    """Start Ray, and once more if it does not come up: it gives itself 30 s, which a crowded machine can exceed."""
    for last in (False, True):
        with ExitStack() as attempt:
            thread = _RayThread(arguments)
            attempt.callback(thread.finish)  # ends the thread, and with it what the attempt has started
            try:
                thread.start()
            except ResourceError as error:
                if last:
                    raise
                LOG.warning("%s Trying once more.", error)
                continue
            stack.push(attempt.pop_all())
            return


def _temporary_environment(folder: Path) -> dict[str, str]:
    """Temporary files of Ray's processes and of the driver's children end with the session, however they end.

    Ray's dashboard, a forkserver, leaves a `pymp-…` folder in the temporary directory each time it is killed. Kernels
    that torch compiles stay for the next run.
    """
    folder.mkdir(mode=0o700)
    shared = shared_base()
    kernels = os.environ.get(KERNELS_VARIABLE) or str(shared / f"torchinductor_{os.getuid()}")
    return {"TMPDIR": str(folder), SHARED_VARIABLE: f"{shared}{os.pathsep}{folder}", KERNELS_VARIABLE: kernels}


def _local_arguments(temporary_folder: Path, store_bytes: int) -> dict[str, Any]:
    return {
        "address": "local",
        "num_cpus": max(LOCAL_LOGICAL_CPUS_MIN, 2 * (os.cpu_count() or 1)),
        "object_store_memory": store_bytes,
        "resources": node_resources(),
        "include_dashboard": True,  # the State API lives in it; without it Train leaks placement groups
        "log_to_driver": False,
        "configure_logging": False,
        **temporary_folder_argument(temporary_folder),
    }


@dataclass
class _RayThread:
    """Starts and stops Ray in one thread that lives as long as the session.

    The kernel kills Ray's processes when the *thread* that forked them ends (PR_SET_PDEATHSIG), so a caller that
    opens a session in a short-lived thread would lose it; this thread is the parent, whoever calls.
    """

    arguments: dict[str, Any]
    _started: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Block until Ray stands. Raises ResourceError when it does not start."""
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise ResourceError(
                "Cannot start a private Ray",
                found=summary_of(self._error),
                rule="a run needs a Ray of its own or a cluster's",
                remedy="Look into ray-logs/ of the run's folder, or use a cluster with --address.",
            ) from self._error

    def finish(self) -> None:
        """Shut Ray down; also when the caller was interrupted while it started."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            ray.init(**self.arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
        self._started.set()
        self._stop.wait()
        ray.shutdown()


def _short_temporary_folder() -> str:
    """The temporary folder, or /tmp where the sockets' paths would be too long."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= TEMPORARY_FOLDER_CHARACTERS_MAX else "/tmp"
