"""`manta submit`, `logs`, `stop`, `status`, `probe`: jobs of a cluster, runs of this machine, and the nodes of both.

With `--address http://HEAD:8265` a verb calls Ray's Jobs API; without one it reads the runs folder. Nothing
here loads ray: the Jobs API is plain HTTP (cluster/runtime/jobs/client.py).
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.jobs import (
    META_ASKS,
    META_OWNER,
    META_RUN,
    META_RUNS_DIR,
    META_STORE,
    STOP_WAIT_S,
    ask_run,
    entrypoint,
    find_job,
    job_row,
    jobs_client,
    this_owner,
)
from cluster.cli.options import (
    OWNER_VARIABLE,
    RUNS_DIR,
    Address,
    AsJson,
    JobsAddress,
    Overrides,
    Priority,
    RunOrJob,
    RunsDir,
    SpecPath,
    Store,
)
from cluster.command import emit_json
from cluster.errors import RequestError, RunError

if TYPE_CHECKING:  # HTTP, zip and store code is loaded by the verbs that use it: `manta --help` stays fast
    from cluster.runtime.jobs.client import JobsClient, RayJob
    from cluster.runtime.jobs.package import Package
    from cluster.spec.run import RunSpec

PANEL = "Cluster"
MaybeTarget = Annotated[str | None, typer.Argument(metavar="[RUN|JOB]", help="One of them; all when absent.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")]
DriverLog = Annotated[
    bool, typer.Option("--driver", help="The log of a job's run itself (its run.log), whichever node has it.")
]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; else the spec's, else the file's.")]
Folder = Annotated[Path, typer.Option("--folder", help="Working folder to ship.", exists=True, file_okay=False)]
JobId = Annotated[
    str | None, typer.Option("--id", help="Job id; the same id again finds the job, or goes on with one that failed.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return when the job is accepted.")]
ClusterRuns = Annotated[str | None, typer.Option("--runs-dir", help="Runs folder on the cluster, seen by every node.")]
NumCpus = Annotated[float, typer.Option("--driver-cpus", min=0, help="CPUs to reserve for the driver.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (submit, logs, stop, status, probe):
        app.command(rich_help_panel=PANEL)(verb)


def submit(
    spec: SpecPath,
    address: JobsAddress = None,
    override: Overrides = None,
    name: Name = None,
    store: Store = None,
    folder: Folder = Path(),
    runs_dir: ClusterRuns = None,
    job_id: JobId = None,
    driver_cpus: NumCpus = 0,
    priority: Priority = 0,
    detach: Detach = False,
    as_json: AsJson = False,
) -> int:
    """Ship the working folder to a cluster, run the spec there and follow its log."""
    from cluster.spec.rules import load_checked
    from cluster.spec.run import run_name

    loaded = load_checked(spec, override or [])
    run = run_name(name, loaded, spec)
    shipped = _relative_spec(spec, folder)
    package = _package(folder, shipped, loaded)
    with jobs_client(address) as client:
        client.ray_version()
        _note(f"Shipping {len(package.files)} files ({len(package.data) / 2**20:.1f} MiB) to {client.address}.")
        metadata = {META_RUN: run, META_OWNER: this_owner(), META_STORE: store, META_RUNS_DIR: runs_dir}
        job = client.submit(
            job_id or f"{run}-{secrets.token_hex(4)}",
            entrypoint(shipped, override or [], run, store=store, runs_dir=runs_dir, priority=priority),
            runtime_env={
                "working_dir": client.upload(package),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), OWNER_VARIABLE: this_owner()},
            },
            metadata={key: value for key, value in metadata.items() if value is not None},
            **({"entrypoint_num_cpus": driver_cpus} if driver_cpus else {}),
        )
        _note_accepted(job, job_id)
        if detach:
            return _show_job(job, as_json=as_json)
        return _follow(client, job.id, as_json=as_json)


def _note_accepted(job: RayJob, asked_id: str | None) -> None:
    if job.attempt > 1 or job.ended:
        _note(f"Job {asked_id} " + ("has ended before: nothing is started." if job.ended else "goes on."))
    _note(f"Job {job.id}. Follow it with 'manta logs -f {job.id}', stop it with 'manta stop {job.id}'.")


def _package(folder: Path, spec: str, loaded: RunSpec) -> Package:
    """The working folder as a package; says which of the spec's files it cannot hold."""
    from cluster.runtime.jobs.package import build_package, files_named_in

    inside, outside = files_named_in(loaded.model_dump(mode="json"), folder)
    for text in outside:
        _note(f"{text} is outside {folder.resolve()} and is not shipped: the cluster must have it at that path.")
    return build_package(folder, needed=(spec, *inside))


def logs(
    target: RunOrJob,
    address: JobsAddress = None,
    follow: Follow = False,
    driver: DriverLog = False,
    runs_dir: RunsDir = RUNS_DIR,
) -> int:
    """Print the log of a run or a job; -f goes on until it ends and returns its exit code."""
    if address is None:
        from cluster.cli.local_runs import follow_log
        from cluster.store.run_folder import find_run

        return follow_log(find_run(runs_dir, target), _write, follow=follow)
    with jobs_client(address) as client:
        job = find_job(client, target)
        if follow and not driver:
            return _follow(client, job.id, as_json=False)
        _write(ask_run(client, job, "logs") if driver else _job_log(client, job))
        return 0


def _job_log(client: JobsClient, job: RayJob) -> str:
    """The job's own log, or its run's where the node that wrote it is gone."""
    try:
        return client.logs(job.id)
    except RunError as error:
        if META_RUN not in job.metadata:
            raise
        _note(f"The job's log cannot be read ({error.found}); this is the log of its run's driver.")
        return ask_run(client, job, "logs")


def stop(target: RunOrJob, address: JobsAddress = None, runs_dir: RunsDir = RUNS_DIR, as_json: AsJson = False) -> int:
    """Stop a run or a job cleanly; what is finished is kept and the run can be resumed."""
    if address is None:
        from cluster.cli.local_runs import stop_run
        from cluster.store.run_folder import find_run

        stopped = stop_run(find_run(runs_dir, target))
    else:
        with jobs_client(address) as client:
            stopped = _stop_job(client, find_job(client, target))
    if as_json:
        emit_json({"ok": True, "target": target, "stopped": stopped})
    else:
        _note(f"{target} is stopped." if stopped else f"{target} was not running.")
    return 0


def _stop_job(client: JobsClient, job: RayJob) -> bool:
    """Whether something was at work. A job whose supervisor died says nothing of its run: the run itself is asked."""
    if client.stop(job.id):
        return _wait_for_end(client, job.id)
    if job.status != "FAILED" or job.exit_code is not None or META_RUN not in job.metadata:
        return False
    return bool(json.loads(ask_run(client, job, "stop", "--json"))["stopped"])


def status(
    target: MaybeTarget = None, address: JobsAddress = None, runs_dir: RunsDir = RUNS_DIR, as_json: AsJson = False
) -> int:
    """Show the state of one or all runs here, or of the jobs of a cluster."""
    if address is None:
        from cluster.cli.local_runs import status_rows

        rows = status_rows(runs_dir, target)
    else:
        with jobs_client(address) as client:
            jobs = [find_job(client, target)] if target else client.jobs()
            rows = [job_row(job) for job in jobs if META_ASKS not in job.metadata]
    if as_json:
        emit_json(rows)
        return 0
    for row in rows:
        _write(f"{row['id']}  {row['state']}{'  ' + row['note'] if row['note'] else ''}\n")
    if not rows:
        _write("Nothing there.\n")
    return 0


def probe(address: Address = None, as_json: AsJson = False) -> None:
    """Show cores, memory and GPUs of this host, or of every node of the cluster at --address."""
    from cluster.cli.node_table import node_to_json, print_node, read_nodes

    nodes = read_nodes(address)
    if as_json:
        emit_json({"nodes": [node_to_json(node) for node in nodes]})
        return
    for node in nodes:
        print_node(node)


def _follow(client: JobsClient, job_id: str, *, as_json: bool) -> int:
    """Show a job's log to its end. Ctrl-C leaves the job running."""
    client.job(job_id)
    try:
        job = client.follow(job_id, _note_raw if as_json else _write)
    except KeyboardInterrupt:
        _note(f"The job goes on. 'manta logs -f {job_id}' follows it again, 'manta stop {job_id}' stops it.")
        return 0
    return _show_job(job, as_json=as_json)


def _show_job(job: RayJob, *, as_json: bool) -> int:
    code = 0 if job.status != "FAILED" else (job.exit_code or 1)
    code = 1 if job.status == "STOPPED" else code
    if as_json:
        emit_json({"ok": code == 0, "job": job_row(job)})
    else:
        _note(f"Job {job.id}: {job.status.lower()}.")
        if job.status == "FAILED":
            _note(f"'manta logs {job.id} --driver' shows the log of its run's driver; the same --id goes on from here.")
    return code


def _wait_for_end(client: JobsClient, job_id: str) -> bool:
    """Ray answers a stop at once; the job ends when its processes have."""
    deadline = time.monotonic() + 2 * STOP_WAIT_S
    while not client.job(job_id).ended and time.monotonic() < deadline:
        time.sleep(0.5)
    return True


def _relative_spec(spec: Path, folder: Path) -> str:
    resolved = spec.resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise RequestError(
            f"Cannot submit {spec}",
            found=f"it lies outside the working folder {folder.resolve()}",
            rule="the cluster sees what is shipped",
            remedy="Run the command in the project's folder, or name the folder with --folder.",
        )
    return resolved.relative_to(folder.resolve()).as_posix()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note_raw(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _note(text: str) -> None:
    _note_raw(text + "\n")
