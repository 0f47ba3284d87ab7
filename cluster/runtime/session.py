"""A Ray session for one driver: the cluster it was told to use, or a private one that ends with it.

Invariant: a private session leaves no process, port, shared memory or folder behind, whether the driver returns,
raises, is interrupted or is killed; it never meets another Ray of the machine (own ports, own folder, own token), and
writes nothing into the user's home.

Covered: start, attach, end, logs. Not covered: a cluster's life (docker/, `ray start`), jobs (jobs/client.py).
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

from cluster.errors import ClusterUnreachableError, ResourceError
from cluster.runtime.join.check import check_cluster
from cluster.runtime.join.token import MODE_VARIABLE, TOKEN_VARIABLE, find_token
from cluster.runtime.nodes.gpu_memory import node_resources
from cluster.runtime.private.haproxy import private_serve_place
from cluster.runtime.private.reaper import MARKER_VARIABLE, PrivatePlace, Reaper
from cluster.runtime.private.shared_memory import object_store_bytes, shared_memory_free_bytes
from cluster.runtime.ray_private import forget_cached_authentication, temporary_folder_argument
from cluster.temporary import SHARED_VARIABLE, scratch_folder, shared_base

LOG = logging.getLogger(__name__)
KERNELS_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # torch/_inductor/runtime/cache_dir_utils.py; its default is in TMPDIR
LOCAL_LOGICAL_CPUS_MIN = 8  # logical: a laptop's two cores must hold the drivers, workers and replicas of one run
# A Unix socket's path holds 107 characters; Ray's part of it is
# "/manta-abcdefgh/r/session_2026-11-24_08-42-17_587580_4194304/sockets/plasma_store" = 81
TEMPORARY_FOLDER_CHARACTERS_MAX = 107 - 81


@dataclass(frozen=True)
class RaySession:
    """A live connection. `private` sessions end with the driver."""

    address: str
    private: bool


@contextmanager
def ray_session(address: str | None = None, *, logs: Path | None = None) -> Iterator[RaySession]:
    """Connect to `address` (or RAY_ADDRESS), else start a private local Ray; shut down what was started.

    `logs`: folder that receives Ray's own log files of a private session.
    Raises ClusterUnreachableError, MemoryShortError, ResourceError.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    with _attached(address) if address else _private(logs) as session:
        yield session


@contextmanager
def _attached(address: str) -> Iterator[RaySession]:
    """Join a cluster that was there before; only the connection ends."""
    with ExitStack() as stack:
        token = find_token()
        if MODE_VARIABLE not in os.environ:
            # Ray itself sends no token to an address that is given, unless the mode says so
            stack.enter_context(_environment({MODE_VARIABLE: "token" if token else "disabled"}))
        if os.environ.get("RAY_USE_TLS", "0") != "1":
            check_cluster(address, token=token if os.environ[MODE_VARIABLE] == "token" else None)
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterUnreachableError(
                f"Cannot join the Ray cluster at {address}",
                found=_said(error),
                remedy="Look at the head with 'ray status', or leave --address and RAY_ADDRESS out for a private Ray.",
            ) from error
        stack.callback(ray.shutdown)
        yield RaySession(ray.get_runtime_context().gcs_address, private=False)


@contextmanager
def _private(logs: Path | None) -> Iterator[RaySession]:
    """Start a Ray that nobody else can join, and end it with all that belongs to it."""
    store_bytes = object_store_bytes(shared_memory_free_bytes)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(base=_short_temporary_folder()))
        serve_folder = stack.enter_context(private_serve_place())
        place = PrivatePlace(
            secrets.token_hex(8), (folder, serve_folder), folder / "r", logs, os.getpid(), os.getsid(0)
        )
        stack.callback(Reaper(place).finish)
        own = {MARKER_VARIABLE: place.marker, **_temporary_environment(folder / "t")}
        if MODE_VARIABLE not in os.environ:
            own |= {MODE_VARIABLE: "token", TOKEN_VARIABLE: secrets.token_hex(32)}
        stack.enter_context(_environment(own))
        _start(stack, _local_arguments(place.sessions, store_bytes))
        yield RaySession(ray.get_runtime_context().gcs_address, private=True)


def _start(stack: ExitStack, arguments: dict[str, Any]) -> None:
    """Start Ray, and once more if it does not come up: it gives itself 30 s, which a crowded machine can exceed."""
    for last in (False, True):
        with ExitStack() as attempt:
            keeper = _Keeper(arguments)
            attempt.callback(keeper.finish)  # ends the thread, and with it what the attempt has started
            try:
                keeper.start()
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
class _Keeper:
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
        self._thread = threading.Thread(target=self._run, name="ray-keeper", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise ResourceError(
                "Cannot start a private Ray",
                found=_said(self._error),
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


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for Ray's processes and make Ray's own cached view of them new; undo both at the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    forget_cached_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        forget_cached_authentication()


def _said(error: BaseException) -> str:
    """Class and first line of an error that is not ours."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _short_temporary_folder() -> str:
    """The temporary folder, or /tmp where the sockets' paths would be too long."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= TEMPORARY_FOLDER_CHARACTERS_MAX else "/tmp"
