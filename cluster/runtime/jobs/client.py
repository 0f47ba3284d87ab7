"""Ray Jobs over plain HTTP: submit, follow, stop. Loads neither Ray nor torch.

Invariant: a submit can be repeated: the job's id is ours, and an id that exists is found again instead of started
twice. Every answer that is not a success becomes one error of ours with what the head said.

Covered: the REST API of Ray 2.60 (ray/dashboard/modules/job). Not covered: a queue, retries, logs that outlive the
node that wrote them (Ray keeps none of them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from cluster.errors import ClusterUnreachableError, RequestError, RunError
from cluster.runtime.jobs.package import Package
from cluster.runtime.join.token import TOKEN_REMEDY

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0  # starting a job's supervisor on a busy head takes seconds
FOLLOW_POLL_S = 0.5
FOLLOW_POLL_BYTES_PER_S = 4 << 20  # the whole log comes with every poll: a larger log is asked for less often
LOST_S = 60.0  # a head that restarts is back within half a minute
ATTEMPT_OF = "manta.attempt_of"  # in a job's metadata: the id that the submit named
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class RayJob:
    """What the head knows of a job."""

    id: str
    status: str
    message: str = ""
    exit_code: int | None = None
    started_unix_ms: int | None = None
    ended_unix_ms: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    node_id: str | None = None
    """Node of its driver, once it has started."""

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def attempt(self) -> int:
        """Which attempt at the job that a submit named; 1 is the first."""
        return int(self.id.rpartition(".")[2]) if ATTEMPT_OF in self.metadata else 1

    @property
    def may_go_on(self) -> bool:
        """Whether a submit of the same id goes on with it."""
        return self.status in ("FAILED", "STOPPED")


class JobsClient:
    """The Jobs API of one head, `http://HOST:8265`. Raises ClusterUnreachableError and RequestError."""

    def __init__(self, address: str, *, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        if not address.startswith(("http://", "https://")):
            raise RequestError(
                f"Cannot use the cluster at {address}",
                found="the address is not a URL",
                rule="jobs go to the head's dashboard",
                remedy="Give its URL, for example http://10.0.0.5:8265; 'manta run --address' takes HOST:PORT.",
            )
        self.address = address.rstrip("/")
        self._token = token
        self._http = httpx.Client(
            base_url=self.address,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport,
            trust_env=False,  # a proxy for the internet does not know a cluster's addresses
        )

    def close(self) -> None:
        self._http.close()

    def ray_version(self) -> str:
        """The head's Ray version; the cheapest call that proves address and token."""
        return str(self._call("GET", "/api/version").json().get("ray_version", ""))

    def upload(self, package: Package) -> str:
        """Put the package on the cluster unless it is there; returns its URI."""
        path = f"/api/packages/gcs/{package.name}"
        if self._send("GET", path).status_code != 200:
            self._call("PUT", path, content=package.data)
        return f"gcs://{package.name}"

    def submit(
        self, job_id: str, entrypoint: str, *, runtime_env: dict[str, Any], metadata: dict[str, str], **more: Any
    ) -> RayJob:
        """Start a job, or return the one of that id that runs or has succeeded. One that has failed or was stopped goes
        on as another job of Ray's, `ID.2` and so on. `more`: entrypoint_num_cpus and its like."""
        there = self.newest(job_id)
        if there is not None and not there.may_go_on:
            return there
        ray_id = f"{job_id}.{there.attempt + 1}" if there else job_id
        about = {**metadata, ATTEMPT_OF: job_id} if there else metadata
        body = {"submission_id": ray_id, "entrypoint": entrypoint, "runtime_env": runtime_env, "metadata": about}
        try:
            self._call("POST", "/api/jobs/", json={**body, **more})
        except RunError:
            if self.find(ray_id) is None:  # else somebody else has submitted the same in this moment
                raise
        return self.job(ray_id)

    def newest(self, job_id: str) -> RayJob | None:
        """The last attempt at a job, or None. Its own id would not do: Ray watches a job that has ended for a moment
        longer, and would take a new one of the same id for dead (2.60)."""
        first = self.find(job_id)
        if first is None or not first.may_go_on:
            return first
        later = [job for job in self.jobs() if job.metadata.get(ATTEMPT_OF) == job_id]
        return max([first, *later], key=lambda job: job.attempt)

    def forget(self, job_id: str) -> None:
        """Remove the record of a job that has ended; its log stays on its node. Nothing for another one."""
        with suppress(RunError, ClusterUnreachableError):
            self._call("DELETE", f"/api/jobs/{job_id}")

    def living_nodes(self) -> set[str]:
        """Ids of the nodes that are alive, by Ray's State API."""
        answer = self._call("GET", "/api/v0/nodes").json()
        return {node["node_id"] for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"}

    def find(self, job_id: str) -> RayJob | None:
        """The job of that id, or None."""
        response = self._send("GET", f"/api/jobs/{job_id}")
        if response.status_code == 404:
            return None
        return _job(self._checked(response).json())

    def job(self, job_id: str) -> RayJob:
        """The job of that id. Raises RequestError that lists the jobs there are."""
        found = self.find(job_id)
        if found is None:
            have = ", ".join(job.id for job in self.jobs()[:10]) or "none"
            raise RequestError(
                f"Cannot find job '{job_id}' on {self.address}",
                found="the cluster has no such job",
                rule="a cluster forgets its jobs when its head restarts",
                remedy=f"Jobs there: {have}.",
            )
        return found

    def jobs(self) -> list[RayJob]:
        """Submitted jobs, newest first."""
        found = [_job(each) for each in self._call("GET", "/api/jobs/").json() if each.get("submission_id")]
        return sorted(found, key=lambda job: job.started_unix_ms or 0, reverse=True)

    def logs(self, job_id: str) -> str:
        """All that the job's entrypoint has written so far."""
        return str(self._call("GET", f"/api/jobs/{job_id}/logs").json().get("logs", ""))

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; True if it was running."""
        self.job(job_id)
        return bool(self._call("POST", f"/api/jobs/{job_id}/stop").json().get("stopped"))

    def follow(self, job_id: str, show: Callable[[str], None], *, lost_s: float = LOST_S) -> RayJob:
        """Show the log as it grows until the job has ended; outlives a head that is away for less than `lost_s`."""
        shown = 0
        for job in self._polls(job_id, lost_s):
            text = self._logs_or_nothing(job_id)
            show(text[shown:])
            shown = max(shown, len(text))
            if job.ended:
                return job
            time.sleep(max(FOLLOW_POLL_S, shown / FOLLOW_POLL_BYTES_PER_S))
        raise AssertionError("polls end with an error or never")

    def _polls(self, job_id: str, lost_s: float) -> Iterator[RayJob]:
        last_answer = time.monotonic()
        while True:
            try:
                job = self.job(job_id)
                last_answer = time.monotonic()
            except ClusterUnreachableError:
                if time.monotonic() - last_answer > lost_s:
                    raise
                time.sleep(FOLLOW_POLL_S)
                continue
            yield job

    def _logs_or_nothing(self, job_id: str) -> str:
        """The log comes from the node's agent, which can be away while the head answers."""
        try:
            return self.logs(job_id)
        except (ClusterUnreachableError, RunError):
            return ""

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._checked(self._send(method, path, **more))

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        with _reachable(self.address):
            response = self._http.request(method, path, **more)
        if response.status_code in (401, 403):
            raise ClusterUnreachableError(
                f"Cannot use the cluster at {self.address}",
                found="it refuses the token that was given" if self._token else "it demands a token, none was given",
                remedy=TOKEN_REMEDY,
            )
        return response

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success and "json" in response.headers.get("content-type", "json"):
            return response
        if response.is_success or response.status_code in (404, 405):
            raise ClusterUnreachableError(
                f"Cannot use the cluster at {self.address}",
                found=f"what answers there has no Jobs API ({response.request.url.path}: {response.status_code})",
                remedy="Give the URL of the head's dashboard, by default port 8265.",
            )
        last = (response.text.strip().splitlines() or ["no reason was given"])[-1]
        raise RunError(
            f"The cluster at {self.address} did not do {response.request.method} {response.request.url.path}",
            found=f"it answered {response.status_code}: {last}",
            remedy="Look at the head's logs (dashboard.log), and try again.",
        )


@contextmanager
def _reachable(address: str) -> Iterator[None]:
    try:
        yield
    except httpx.InvalidURL as error:
        raise RequestError(f"Cannot use the cluster at {address}", found=str(error)) from error
    except httpx.HTTPError as error:
        raise ClusterUnreachableError(
            f"Cannot reach the cluster at {address}",
            found=str(error) or type(error).__name__,
            rule="jobs go to the head's dashboard, by default port 8265",
            remedy="Check the address and that the head runs; behind a firewall forward the port, for example "
            "'ssh -L 8265:127.0.0.1:8265 HEAD'.",
        ) from error


def _job(raw: dict[str, Any]) -> RayJob:
    return RayJob(
        id=raw.get("submission_id") or raw.get("job_id") or "",
        status=str(raw.get("status", "")),
        message=raw.get("message") or "",
        exit_code=raw.get("driver_exit_code"),
        started_unix_ms=raw.get("start_time"),
        ended_unix_ms=raw.get("end_time"),
        metadata=raw.get("metadata") or {},
        node_id=raw.get("driver_node_id"),
    )
