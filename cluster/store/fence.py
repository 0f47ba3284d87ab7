"""Which driver may write into a run's folder: numbers that are drawn, of which the highest writes.

    runs/<name>/fence/0000000003-5f0c1e2a      drawn by the third driver of this run
    runs/<name>/stop.json                      {"driver": "0000000003-5f0c1e2a"}: that driver is asked to end

Invariant: of all drivers of a run, on whatever hosts, at most one finds `holds()` true: names are in one order, and a
name once drawn is never drawn again. The lock (locks.py) keeps a second driver of the same host away at once; this
number ends the first one where a lock does not reach: another host's, or a file system without locks.

Covered: drawing, asking, a request to stop from any host that sees the folder. Not covered: checkpoints, which have a
fence of their own (trainers/loop/checkpointing/folder.py).
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from cluster.atomic import write_json
from cluster.errors import ReplacedRunError
from cluster.store.run_folder import RunFolder

DIGITS = 10


@dataclass(frozen=True)
class Fence:
    """The number that one driver has drawn."""

    run: RunFolder
    name: str

    @classmethod
    def draw(cls, run: RunFolder) -> Fence:
        """A number above all others; those before it hold no more."""
        folder = run.fence
        folder.mkdir(parents=True, exist_ok=True)
        before = newest(run)
        number = int(before.partition("-")[0]) + 1 if before else 1
        fence = cls(run, f"{number:0{DIGITS}d}-{secrets.token_hex(4)}")
        (folder / fence.name).touch(exist_ok=False)
        for path in _drawn(folder):
            if path.name < fence.name:
                path.unlink(missing_ok=True)
        return fence

    def holds(self) -> bool:
        """Whether no later driver has drawn; True while the file system cannot be asked."""
        try:
            return newest(self.run) == self.name
        except OSError:  # a share that is away for a moment ends nobody
            return True

    def check(self) -> None:
        """Raise ReplacedRunError where another driver writes now. Called before what must be written once."""
        if not self.holds():
            raise ReplacedRunError(
                f"Cannot go on with run '{self.run.name}'",
                found="another driver has taken it over, or its folder is gone",
                rule="one driver at a time writes into a run's folder",
                remedy="Nothing is lost: the other driver goes on.",
            )

    def asked_to_stop(self) -> bool:
        """Whether somebody wants this driver to end."""
        try:
            asked = json.loads(self.run.stop_request.read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(asked, dict) and asked.get("driver") == self.name


def newest(run: RunFolder) -> str:
    """The name that holds; empty before the first draw. Raises OSError where the folder cannot be listed."""
    return max((path.name for path in _drawn(run.fence)), default="")


def ask_to_stop(run: RunFolder) -> None:
    """Ask the driver that holds, on whatever host, to end."""
    write_json(run.stop_request, {"driver": newest(run)})


def _drawn(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name[:DIGITS].isdigit()]
    except FileNotFoundError:
        return []
