"""`python -m cluster.pipeline RUN_DIR`: the driver process. `manta run` starts it; a Ray job does too."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType

from cluster import entrypoints
from cluster.command import run_main
from cluster.errors import RequestError
from cluster.pipeline.driver import DriveOptions, run_driver
from cluster.pipeline.ray_thread import still_starting
from cluster.pipeline.supervision import Supervision
from cluster.store.fence import Fence
from cluster.store.locks import hold_lock
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import Message
from cluster.telemetry.log import setup_logging

LOOK_EVERY_S = 2.0  # a kept run ends this long after its last endpoint


def main(arguments: list[str] | None = None) -> int:
    """Returns the run's exit code."""
    return run_main(_drive, arguments)


def _drive(arguments: list[str]) -> int:
    """Take the run's lock, install signal handlers, drive."""
    options = _parser().parse_args(arguments)
    setup_logging()
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            return  # one interrupt is enough: a second one must not break the clean-up
        stop.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    run = RunFolder(options.run_dir.resolve())
    with hold_lock(run.lock) as free:
        if not free:
            raise RequestError(f"Cannot run '{run.name}'", found="another process works on it")
        fence = Fence.draw(run)
        drive = DriveOptions(options.address, options.until, options.keep, options.store, options.priority)
        with Supervision(fence, options.leash, partial(_say, run)):
            code = run_driver(run, drive, fence, wait=lambda: _wait(stop))
    if still_starting():  # a run that failed at once: nobody waits for its Ray, which the reaper ends with this process
        logging.shutdown()
        os._exit(code)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.pipeline")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--until")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--store", help="where the bundle is published when it is finished")
    parser.add_argument(
        "--priority", type=int, default=0, help="on a cluster: of waiting runs, the largest trains first"
    )
    parser.add_argument("--leash", type=int, help="descriptor of a pipe: the driver ends when it is closed")
    return parser


def _say(run: RunFolder, text: str) -> None:
    run.sink().emit(Message(level="warning", text=text))


def _wait(stop: threading.Event) -> None:
    """Block until no endpoint is left, or a signal has come: its handler raises KeyboardInterrupt in this thread."""
    is_needed = entrypoints.load(entrypoints.RAY_LIFETIME_ENTRYPOINT)()
    try:
        while not stop.wait(LOOK_EVERY_S) and is_needed():
            pass
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    sys.exit(main())
