"""What `manta run` does: prepare the run's folder, start the driver, show its events, hand on Ctrl-C.

The driver is a process of its own (`python -m cluster.pipeline`): this one stays light, so that the display starts
at once and a first Ctrl-C can stop the driver cleanly while a second one kills it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import yaml

from cluster.atomic import write_text
from cluster.cli.options import OWNER_VARIABLE
from cluster.command import emit_json
from cluster.entrypoints import COMMAND_MODULES
from cluster.errors import MantaError, RequestError, WorkerLostError
from cluster.pipeline.stage import interrupted
from cluster.pipeline.supervision import Leash
from cluster.runtime.environment import with_ray_environment
from cluster.spec.load import apply_overrides, parse_yaml, read_text
from cluster.spec.rules import validate_checked
from cluster.spec.run import run_name
from cluster.store.locks import is_locked, wait_until_free
from cluster.store.run_folder import FORGOTTEN, TRAINING, RunFolder
from cluster.telemetry.events import Event, RunFailed, RunFinished, follow_events
from cluster.telemetry.progress import Display, make_display

BUSY_CODE = 2  # of a driver that finds another at work (cluster/pipeline/__main__.py)
ORPHAN_WAIT_S = 15.0  # a driver that nobody watches over is gone within 7 s (cluster/pipeline/supervision.py)


@dataclass(frozen=True)
class Claim:
    """Who wants a run's folder, and how."""

    fresh: bool = False
    """Forget what is there."""
    wait_s: float = 0.0
    """How long an earlier driver of the run may take to end."""
    owner: str | None = None
    """Whoever submitted the run: nobody else goes on with it. None: whoever may write into the folder."""


def prepare_folder(
    spec: Path, overrides: list[str], *, name: str | None, runs_dir: Path, claim: Claim = Claim()
) -> RunFolder:
    """Validate the spec and write it, with its overrides, into the run's folder. Blocks. Raises RequestError."""
    raw = apply_overrides(parse_yaml(read_text(spec), origin=str(spec)), overrides)  # read once: it may be a pipe
    loaded = validate_checked(raw, origin=str(spec))
    folder = RunFolder((runs_dir / run_name(name, loaded, spec)).resolve())
    _refuse_foreign(folder)
    _refuse_other_owner(folder, claim.owner)
    if not wait_until_free(folder.lock, claim.wait_s):
        raise _busy(folder)
    if claim.fresh and folder.path.exists():
        _begin_anew(folder)
    write_text(folder.path / "spec.yaml", yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    if claim.owner is not None:
        write_text(folder.owner, claim.owner + "\n")
    return folder


def _begin_anew(folder: RunFolder) -> None:
    """Remove the run, but for the checkpoints of its trainings, which go once the new one has an epoch."""
    gone = folder.path.with_name(f".{folder.name}.{os.getpid()}.removed")
    folder.path.rename(gone)
    for training in sorted((gone / folder.checkpoints.name).glob(f"*/{TRAINING}")):
        (training.parent / FORGOTTEN).touch()
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        training.parent.rename(folder.checkpoints / training.parent.name)
    shutil.rmtree(gone)


def _refuse_other_owner(folder: RunFolder, owner: str | None) -> None:
    """On a cluster all jobs are of one user: whose a run is, says its folder."""
    if owner is None or not folder.owner.is_file():
        return
    before = folder.owner.read_text(encoding="utf-8").strip()
    if before != owner:
        raise RequestError(
            f"Cannot run '{folder.name}'",
            found=f"a run of that name is there, and it is {before}'s; you are {owner}",
            rule="two people do not work in one run's folder",
            remedy=f"Choose another --name; to go on with that run, submit with {OWNER_VARIABLE}={before}.",
        )


def _refuse_foreign(folder: RunFolder) -> None:
    """A folder that holds something else than a run is never written into, and --fresh never removes it."""
    if not os.path.lexists(folder.path) or (folder.path / "spec.yaml").is_file():
        return
    if folder.path.is_dir() and not any(folder.path.iterdir()):
        return
    raise RequestError(
        f"Cannot run '{folder.name}'",
        found=f"{folder.path} is there and is no run's folder",
        rule="a run writes into a folder of its own",
        remedy="Choose another --name or --runs-dir.",
    )


def _busy(folder: RunFolder) -> RequestError:
    pid = folder.read_state().get("pid", "unknown")
    return RequestError(
        f"Cannot run '{folder.name}'",
        found=f"process {pid} is working on it",
        rule="one process works on a run at a time",
        remedy=f"Wait for it, stop it with 'manta stop {folder.name}', or choose another --name.",
    )


@dataclass(frozen=True)
class DriverProcess:
    """The driver, and the leash at whose end it lives."""

    process: subprocess.Popen[bytes]
    leash: Leash


def start_driver(folder: RunFolder, flags: list[str]) -> DriverProcess:
    """Start the driver in a session of its own, its output in the run's log. It ends with this process."""
    leash = Leash()
    command = [sys.executable, "-m", COMMAND_MODULES["driver"], str(folder.path), *flags]
    with folder.log.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--leash", str(leash.read_end)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(leash.read_end,),
            env=with_ray_environment(dict(os.environ)),
        )
    leash.handed_over()
    return DriverProcess(process, leash)


@dataclass(frozen=True)
class WatchOptions:
    """What the command line decides about watching a run."""

    keep: bool = False
    """Return when the run serves, and leave the driver to serve on."""
    supervised: bool = False
    """Return when the process that started this one is gone; the driver then ends, too."""
    as_json: bool = False


def watch(folder: RunFolder, driver: DriverProcess, options: WatchOptions) -> int:
    """Show the driver's events until it ends (or until it serves, with `keep`), and return its exit code."""
    last: Event | None = None
    process, parent = driver.process, os.getppid()
    display = make_display(folder, as_json=options.as_json)
    offset = folder.events.stat().st_size if folder.events.exists() else 0

    def is_over() -> bool:
        return process.poll() is not None or (options.supervised and os.getppid() != parent)

    with _signals(process, display) as stopping:
        try:
            for event in follow_events(folder.events, is_over, offset_bytes=offset):
                display.show(event)
                if isinstance(event, RunFailed | RunFinished):
                    last = event
                if options.keep and isinstance(event, RunFinished):
                    driver.leash.release()
                    break
        except BrokenPipeError:  # `manta run … | head`: nobody looks on, and nobody could stop it later
            process.terminate()
            process.wait()
            raise
    if last is None and len(stopping) == 1:  # the driver could not answer: it was not up yet
        last = RunFailed(run=folder.name, error=interrupted(folder).to_dict())
        display.show(last)
    display.close()
    if last is None and process.poll() is None:
        driver.leash.cut()  # nobody watches over this process any more
        return 1
    return _finish(folder, process, last, keep=options.keep, as_json=options.as_json)


def _finish(
    folder: RunFolder, driver: subprocess.Popen[bytes], last: Event | None, *, keep: bool, as_json: bool
) -> int:
    if isinstance(last, RunFinished):
        if as_json:
            emit_json({"ok": True, **last.summary})
        if keep:
            driver.returncode = 0  # it goes on serving on purpose: Popen would warn that it is still running
            return 0
        return driver.wait()
    if isinstance(last, RunFailed):
        code = int(last.error.get("exit_code", 1))
        if as_json:
            emit_json({"ok": False, "run": folder.name, "error": last.error})
        return code
    code = driver.wait()
    raise _busy(folder) if code == BUSY_CODE and is_locked(folder.lock) else _died(folder, code)


def _died(folder: RunFolder, code: int) -> MantaError:
    """The driver ended without a last word."""
    how = f"it was killed by signal {-code}" if code < 0 else f"it ended with code {code}"
    return WorkerLostError(
        f"Run '{folder.name}' was cut short",
        found=f"its driver process ended without a result: {how}",
        rule="finished stages are kept",
        remedy=f"Look at {folder.log}, then run the same command again to go on.",
    )


@contextmanager
def _signals(driver: subprocess.Popen[bytes], display: Display) -> Iterator[list[int]]:
    """First Ctrl-C (or SIGTERM, or a closed terminal): stop the driver cleanly. Second: kill it with all it started.

    Yields the signals that have come.
    """
    presses: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        presses.append(number)
        if len(presses) == 1:
            driver.send_signal(signal.SIGTERM)  # not SIGINT: Ray Train puts a handler of its own in its place
            display.note("Stopping; what is finished is kept. Press Ctrl-C again to kill.")
        else:
            os.killpg(driver.pid, signal.SIGKILL)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield presses
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
