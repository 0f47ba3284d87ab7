"""`manta run` and `manta train`: their options; what they do is in run_process.py, loaded when one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.options import RUNS_DIR, Address, AsJson, Overrides, RunsDir, SpecPath
from cluster.pipeline.stages import STAGES

STAGE_NAMES = ", ".join(stage.name for stage in STAGES)
Keep = Annotated[bool, typer.Option("--keep", help="Leave the endpoint running in the background.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget earlier results of this run and start anew.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; else the spec's, else the file's.")]
Profile = Annotated[
    int | None,
    typer.Option("--profile", min=1, metavar="N", help="Trace N updates with torch.profiler into RUN/traces."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="STAGE", help=f"Stop after this stage: {STAGE_NAMES}.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(run)
    app.command()(train)


def run(
    spec: SpecPath,
    override: Overrides = None,
    name: Name = None,
    runs_dir: RunsDir = RUNS_DIR,
    address: Address = None,
    until: Until = None,
    keep: Keep = False,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> int:
    """Take a spec from raw data to an answering endpoint; the same command resumes where it stopped."""
    from cluster.cli.run_process import prepare_folder, start_driver, watch
    from cluster.pipeline.plan import stages_until

    stages_until(until)
    folder = prepare_folder(spec, override or [], name=name, runs_dir=runs_dir, fresh=fresh)
    flags = [
        *(["--address", address] if address else []),
        *(["--until", until] if until else []),
        *(["--keep"] if keep else []),
    ]
    return watch(folder, start_driver(folder, flags), keep=keep, as_json=as_json)


def train(
    spec: SpecPath,
    override: Overrides = None,
    name: Name = None,
    runs_dir: RunsDir = RUNS_DIR,
    address: Address = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    profile: Profile = None,
) -> int:
    """Run until the model is trained: `manta run --until train`."""
    values = [*(override or []), *([f"train.profile_updates={profile}"] if profile else [])]
    return run(spec, values, name, runs_dir, address, "train", False, fresh, as_json)
