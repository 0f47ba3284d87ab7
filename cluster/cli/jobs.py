"""Jobs of a cluster for the verbs: the shell line that a job runs, what became of it in words, questions to its run.

What a job's run has written lies on the cluster. A verb that wants it runs there as a short job of its own, on the
node that the run's driver had while that lives, else on any node that sees the runs folder.

Invariant: every text of Ray's that a person is shown is one sentence.

Covered: one cluster. Not covered: HTTP (cluster/runtime/jobs/client.py), options (cluster.py).
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.cli.options import OWNER_VARIABLE
from cluster.errors import RequestError, RunError
from cluster.runtime.join.token import find_token

if TYPE_CHECKING:  # HTTP is loaded by the verbs that use it: `manta --help` stays fast
    from cluster.runtime.jobs.client import JobsClient, RayJob

# A job that is stopped needs the time to write a checkpoint and stop its workers; Ray's own figure is 3 s
STOP_WAIT_S = 30
CLUSTER_RUNS_DIR = '"${MANTA_RUNS_DIR:-$HOME/manta-runs}"'  # read on the cluster; the images set it to a shared volume
META_RUN, META_STORE, META_RUNS_DIR = "manta.run", "manta.store", "manta.runs_dir"
META_OWNER, META_ASKS = "manta.owner", "manta.asks"
ASK_POLL_S, ASK_WAIT_S = 0.3, 90.0  # starting a job on a busy head takes seconds
SAID_CHARACTERS_MAX = 400
OURS = re.compile(r"^Error: (.*)$|^\s*\"message\": (\".*\"),?$", re.MULTILINE)
OF_RAYS_LOG = re.compile(r"^Running entrypoint for job .*\n", re.MULTILINE)  # what comes after it is the command's
OF_RAY = {
    "Job has not started yet. It may be waiting for the runtime": "waiting: its files are unpacked on the cluster",
    "Job has not started yet. It may be waiting for resources": "waiting for the CPUs that --driver-cpus reserves",
    "Job has not started yet": "waiting for the cluster to start it",
    "Job supervisor actor died": "the process that watched over it on the cluster is gone, and its run ends, too; "
    "submit it with the same --id to go on",
    "Job supervisor actor failed to start": "the cluster did not start it in time; submit it with the same --id",
    "Job supervisor actor could not be scheduled": "no node of the cluster can take it",
    "runtime_env setup failed": "its files could not be unpacked on the cluster",
    "Unexpected error occurred": "the cluster lost sight of it; submit it with the same --id to go on",
}
"""Start of a text of Ray 2.60's (ray/dashboard/modules/job) -> what it means for the run."""


def this_owner() -> str:
    """Who submits: MANTA_OWNER, else the user and host of this machine."""
    if given := os.environ.get(OWNER_VARIABLE):
        return given
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def entrypoint(
    spec: str, overrides: list[str], run: str, *, store: str | None, runs_dir: str | None, priority: int = 0
) -> str:
    """The shell line that the cluster runs. The run takes the shell's place, so that its parent is what Ray watches."""
    sets = [part for override in overrides for part in ("--set", override)]
    stores = ["--store", store] if store else []
    first = ["--priority", str(priority)] if priority else []
    words = ["manta", "run", spec, "--name", run, "--supervised", *first, *stores, *sets]
    return f"exec {shlex.join(words)} --runs-dir {_place(runs_dir)}"


def job_row(job: RayJob) -> dict[str, Any]:
    """JSON-able facts of a job, in the form of `manta status`."""
    return {
        "id": job.id,
        "state": job.status.lower(),
        "note": sentence_of(job),
        "exit_code": job.exit_code,
        "started_unix_s": job.started_unix_ms and job.started_unix_ms / 1000,
        "run": job.metadata.get(META_RUN),
        "store": job.metadata.get(META_STORE),
        "owner": job.metadata.get(META_OWNER),
    }


def sentence_of(job: RayJob) -> str:
    """Why a job waits or has failed; empty for others."""
    if job.status not in ("FAILED", "PENDING"):
        return ""
    if found := list(OURS.finditer(job.message)):  # its log's end: the last error is what ended it
        text = found[-1].group(1) or json.loads(found[-1].group(2))
        return str(text).strip()[:SAID_CHARACTERS_MAX]
    for start, meaning in OF_RAY.items():
        if job.message.startswith(start):
            return meaning
    if job.exit_code is not None:
        return f"its command ended with code {job.exit_code}; 'manta logs {job.id}' shows what it wrote"
    return " ".join(job.message.split())[:SAID_CHARACTERS_MAX]


def find_job(client: JobsClient, target: str) -> RayJob:
    """The last attempt at the job of an id, else the newest job of a run. Raises RequestError."""
    found = client.newest(target)
    of_run = (job for job in client.jobs() if job.metadata.get(META_RUN) == target) if found is None else ()
    return found or next(iter(of_run), None) or client.job(target)


def ask_run(client: JobsClient, job: RayJob, verb: str, *flags: str) -> str:
    """What `manta VERB RUN` prints on the cluster about the job's run. Blocks. Raises RunError."""
    run = job.metadata.get(META_RUN)
    if run is None:
        raise RequestError(f"Cannot ask for the run of job '{job.id}'", found="the job is none of Manta's")
    words = shlex.join(["manta", verb, run, *flags])
    line = f"exec env -u RAY_API_SERVER_ADDRESS {words} --runs-dir {_place(job.metadata.get(META_RUNS_DIR))}"
    node = job.node_id if job.node_id in client.living_nodes() else None
    more = {"entrypoint_label_selector": {"ray.io/node-id": node}} if node else {}
    asked = client.submit(
        f"manta-{verb}-{secrets.token_hex(6)}", line, runtime_env={}, metadata={META_ASKS: job.id}, **more
    )
    try:
        return _answer(client, asked, f"Cannot {verb} run '{run}' on the cluster")
    finally:
        client.forget(asked.id)


def _answer(client: JobsClient, asked: RayJob, attempted: str) -> str:
    deadline = time.monotonic() + ASK_WAIT_S
    while not (now := client.job(asked.id)).ended:
        if time.monotonic() > deadline:
            raise RunError(attempted, found=f"the cluster did not answer within {ASK_WAIT_S:g} s")
        time.sleep(ASK_POLL_S)
    if now.status != "SUCCEEDED":
        raise RunError(attempted, found=sentence_of(now) or f"the job that asks was {now.status.lower()}")
    return OF_RAYS_LOG.split(client.logs(asked.id), maxsplit=1)[-1]


@contextmanager
def jobs_client(address: str | None) -> Iterator[JobsClient]:
    if address is None:
        raise RequestError(
            "Cannot submit",
            found="no cluster was named",
            rule="a job goes to a Ray cluster's head",
            remedy="Give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS; 'manta run' works without one.",
        )
    from cluster.runtime.jobs.client import JobsClient

    disabled = os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled"
    client = JobsClient(address, token=None if disabled else find_token())
    try:
        yield client
    finally:
        client.close()


def _place(runs_dir: str | None) -> str:
    return shlex.quote(runs_dir) if runs_dir else CLUSTER_RUNS_DIR
