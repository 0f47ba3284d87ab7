"""Pictures of a real run for the README: `python docs/pictures.py RUN_DIR` writes docs/images/.

    run.svg       the terminal at the end of the run
    search.svg    the terminal in the middle of the search
    report.png    the top of the report (needs Chromium on the path; left out without it)

Invariant: nothing is made up: the terminal pictures are drawn by the display that a user sees, from the run's events.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.spinner import Spinner  # noqa: E402
from rich.terminal_theme import TerminalTheme  # noqa: E402

from cluster.store.run_folder import RunFolder  # noqa: E402
from cluster.telemetry.events import Event, RunFinished, RunStarted, TrialUpdated, decode, encode, read_events  # noqa: E402
from cluster.telemetry.progress import draw_run, final_parts  # noqa: E402
from cluster.telemetry.view import RunView  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WIDTH = 110  # columns: the longest headline of the quickstart stays on one line
NORMAL = "182028 f0776a 5cc98a e3b05a 6495ed a58ce6 45c1d2 e4e9ee"  # the report's dark colors
BRIGHT = "6e7a87 f0776a 5cc98a e3b05a 6495ed a58ce6 45c1d2 ffffff"
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
)
CHROMIUM_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
REPORT_SIZE = (1120, 1400)


def colors(text: str) -> list[tuple[int, int, int]]:
    """Hex words -> red, green, blue."""
    return [(int(word[:2], 16), int(word[2:4], 16), int(word[4:], 16)) for word in text.split()]


THEME = TerminalTheme((16, 21, 27), (228, 233, 238), colors(NORMAL), colors(BRIGHT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    run = RunFolder(parser.parse_args().run_dir.resolve())
    events = [relative(event, run) for event in read_events(run.events)]
    last = max(index for index, event in enumerate(events) if isinstance(event, RunStarted))
    events = events[last:]
    IMAGES.mkdir(parents=True, exist_ok=True)
    terminal(IMAGES / "run.svg", events, lambda event: isinstance(event, RunFinished))
    trials = [event for event in events if isinstance(event, TrialUpdated) and event.stage == "search"]
    if trials:
        moment = trials[len(trials) * 3 // 4]
        terminal(IMAGES / "search.svg", events, lambda event: event is moment)
    page(run.report, IMAGES / "report.png")


def relative(event: Event, run: RunFolder) -> Event:
    """The same event with the run's folder as a reader would have it."""
    text = encode(event).replace(json.dumps(str(run.path))[1:-1], f"runs/{run.name}")
    return decode(text)


def terminal(path: Path, events: list[Event], until: Callable[[Event], bool]) -> None:
    """The display's picture at the first event for which `until` holds."""
    view = RunView()
    for event in events:
        view.apply(event)
        if until(event):
            break
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    now_s = view.last_unix_s or 0.0
    console.print(draw_run(view, now_s=now_s, spinner=Spinner("dots", style="cyan"), width=WIDTH))
    for part in final_parts(view):
        console.print(part)
    console.save_svg(str(path), title=f"manta run configs/{view.run}.yaml", theme=THEME)
    sys.stdout.write(f"{path}\n")


def page(report: Path, path: Path) -> None:
    """A screenshot of the top of the report."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.stderr.write("no Chromium here: report.png is left as it is\n")
        return
    size = f"--window-size={REPORT_SIZE[0]},{REPORT_SIZE[1]}"
    with tempfile.TemporaryDirectory() as profile:
        flags = [*CHROMIUM_FLAGS, *CHROMIUM_QUIET, f"--user-data-dir={profile}", size, f"--screenshot={path}"]
        subprocess.run([chromium, *flags, report.as_uri()], check=True, capture_output=True, timeout=120)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
