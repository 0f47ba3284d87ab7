"""`python -m trainers.trackers RUN`: send a run's curves to the trackers of its spec; again, if you like."""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from pathlib import Path

from cluster.atomic import write_json
from cluster.command import run_main, write_line
from cluster.errors import RequestError
from cluster.runtime.extras import check_extras
from cluster.spec.resolve import ResolvedRun
from cluster.store.run_folder import RunFolder
from cluster.telemetry.events import read_events
from trainers.trackers import mlflow, wandb
from trainers.trackers.points import Story, flat_spec, tell

KEY_FILE = "tracking.json"


def main(arguments: list[str] | None = None) -> int:
    """Each tracker is tried, whatever the others did. Returns the exit code; the last line says what failed."""
    return run_main(_send_run, arguments)


def _send_run(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    sent, failed = send(RunFolder(options.run.resolve()), options.status)
    sys.stdout.write(json.dumps(sent) + "\n")
    if failed:
        write_line("; ".join(f"{name}: {why}" for name, why in failed.items()))
    return 1 if failed else 0


def send(run: RunFolder, status: str) -> tuple[dict[str, str], dict[str, str]]:
    """(tracker -> id of the run there, tracker -> what went wrong). Raises RequestError, MissingDependencyError."""
    resolved = run.read_resolved()
    if resolved is None:
        raise RequestError(
            f"Cannot send {run.path} to its trackers",
            found="it has no resolved.yaml",
            remedy="Name the folder of a run that has begun.",
        )
    check_extras(resolved.spec)
    for name, value in {**mlflow.ENVIRONMENT, **wandb.ENVIRONMENT}.items():
        os.environ.setdefault(name, value)
    story = tell(read_events(run.events), run.records(), run_key(run))
    sent: dict[str, str] = {}
    failed: dict[str, str] = {}
    if not story.points:
        return sent, failed
    for name in ("mlflow", "wandb"):
        try:
            if (identity := _send_one(name, run, resolved, story, status)) is not None:
                sent[name] = identity
        except Exception as error:  # noqa: BLE001 - the trackers' seam: a library's own errors have no common base
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return sent, failed


def run_key(run: RunFolder) -> str:
    """A key of this run folder among others of the same name. Made once; `--fresh` removes it with the rest."""
    path = run.path / KEY_FILE
    if not path.exists():
        write_json(path, {"key": uuid.uuid4().hex})
    return str(json.loads(path.read_text(encoding="utf-8"))["key"])


def _send_one(name: str, run: RunFolder, resolved: ResolvedRun, story: Story, status: str) -> str | None:
    tracking, parameters = resolved.spec.tracking, flat_spec(resolved.spec.model_dump(mode="json"))
    if name == "mlflow" and tracking.mlflow is not None:
        return mlflow.send_to_mlflow(tracking.mlflow, story, name=run.name, parameters=parameters, status=status)
    if name == "wandb" and tracking.wandb is not None:
        return wandb.send_to_wandb(
            tracking.wandb, story, name=run.name, parameters=parameters, status=status, folder=run.path
        )
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainers.trackers", description="Send a run to its trackers.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--status", choices=["finished", "failed"], default="finished")
    return parser


if __name__ == "__main__":
    sys.exit(main())
