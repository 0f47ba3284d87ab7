"""What shows a run that has ended: the report, the TensorBoard files, the trackers' curves.

Invariant: best effort. A view that cannot be made is one warning in the run's events, which names the view and the
cause; the run ends, and with the same result, as it would without that view.

Covered: order, faults, Ctrl-C. Not covered: what a view shows (cluster/report, trainers/tensorboard.py,
trainers/trackers).
"""

from __future__ import annotations

from collections.abc import Callable

from cluster import entrypoints
from cluster.pipeline.trackers import send_to_trackers
from cluster.report import write_report
from cluster.spec.tracking import TrackingSpec
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import Message, Record


def make_views(run: RunFolder, status: str, last: Record | None = None) -> None:
    """Make every view that the spec names. `status`: finished, failed or interrupted. Blocks.

    `last` is the record that the caller emits right after: the report shows it, since a reader of that event may open
    the report. An interrupted run sends nothing to trackers: the run that goes on sends everything.
    """
    views: dict[str, Callable[[], object]] = {
        f"report ({run.report.name})": lambda: write_report(run, last),
        f"TensorBoard files ({run.tensorboard.name}/)": lambda: _write_tensorboard(run),
    }
    if status != "interrupted":
        views["trackers' curves"] = lambda: _send(run, status)
    for name, make in views.items():
        try:
            make()
        except KeyboardInterrupt:
            _warn(run, name, "interrupted")
            return
        except Exception as error:  # noqa: BLE001 - a view has no say in how a run ends
            _warn(run, name, f"{type(error).__name__}: {error}")


def _write_tensorboard(run: RunFolder) -> None:
    if _tracking(run).tensorboard:
        entrypoints.load(entrypoints.TENSORBOARD_ENTRYPOINT)(run)


def _send(run: RunFolder, status: str) -> None:
    if run.resolved_path.exists():  # curves begin after the check stage
        send_to_trackers(run, _tracking(run), status)


def _tracking(run: RunFolder) -> TrackingSpec:
    """The resolved run's, else the defaults."""
    resolved = run.read_resolved()
    return resolved.spec.tracking if resolved else TrackingSpec()


def _warn(run: RunFolder, view: str, why: str) -> None:
    text = f"The {view} could not be made: {' '.join(why.split())}. The run's result is not affected."
    run.sink().emit(Message(level="warning", text=text))
