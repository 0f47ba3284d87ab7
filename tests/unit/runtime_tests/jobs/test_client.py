"""The Jobs client: repeatable submits, a log without gaps or doubles, and one clear error for each refusal."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from cluster.errors import ClusterUnreachableError, RequestError, RunError
from cluster.runtime.jobs import client as client_module
from cluster.runtime.jobs.client import JobsClient, RayJob
from cluster.runtime.jobs.package import Package

URL = "http://head:8265"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FOLLOW_POLL_S", 0.0)


def client(answer: Callable[[httpx.Request], httpx.Response], token: str | None = None) -> JobsClient:
    return JobsClient(URL, token=token, transport=httpx.MockTransport(answer))


def record(status: str, **more: object) -> dict[str, object]:
    return {"type": "SUBMISSION", "submission_id": "a", "status": status, "message": "", **more}


def test_the_same_id_is_not_submitted_twice() -> None:
    posts: list[dict] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            posts.append(json.loads(request.content))
            return httpx.Response(200, json={"submission_id": "a"})
        return httpx.Response(200, json=record("PENDING")) if posts else httpx.Response(404, text="no")

    head = client(answer)
    for _ in range(2):
        job = head.submit("a", "manta run x.yaml", runtime_env={}, metadata={"manta.run": "x"}, entrypoint_num_cpus=1)
        assert job.status == "PENDING"
    assert len(posts) == 1
    assert posts[0]["entrypoint_num_cpus"] == 1


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED", "RUNNING"])
def test_a_job_that_failed_or_was_stopped_goes_on_under_its_id(status: str) -> None:
    jobs = {"a": record(status)}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            body = json.loads(request.content)
            jobs[body["submission_id"]] = {**record("PENDING"), **body}
        name = request.url.path.removeprefix("/api/jobs/")
        return httpx.Response(200, json=jobs[name] if name else list(jobs.values()))

    def submit() -> RayJob:
        return head.submit("a", "manta run x.yaml", runtime_env={}, metadata={})

    head = client(answer)
    if status in ("SUCCEEDED", "RUNNING"):
        assert submit().id == "a"
        assert list(jobs) == ["a"]
        return
    assert [submit().id, submit().id] == ["a.2", "a.2"], "the second time it is there already"
    jobs["a.2"]["status"] = status
    assert (submit().id, submit().attempt) == ("a.3", 3)
    assert head.newest("a") == head.job("a.3")


def test_of_two_that_submit_the_same_at_once_both_get_the_one_job() -> None:
    posted: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            posted.append("late")
            return httpx.Response(500, text="ValueError: Job with submission_id a already exists.")
        return httpx.Response(200, json=record("RUNNING")) if posted else httpx.Response(404, text="no")

    assert client(answer).submit("a", "manta run x.yaml", runtime_env={}, metadata={}).status == "RUNNING"


def test_following_shows_each_character_once_and_outlives_a_lost_head() -> None:
    steps = iter(
        [
            (record("RUNNING"), "one\n"),
            (None, None),
            (record("RUNNING"), None),
            (record("RUNNING"), "one\ntwo\n"),
            (record("SUCCEEDED", driver_exit_code=0), "one\ntwo\nthree\n"),
        ]
    )
    current: list = [None, None]

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/logs"):
            current[:] = next(steps)
            if current[0] is None:
                raise httpx.ConnectError("gone")
            return httpx.Response(200, json=current[0])
        return (
            httpx.Response(500, text="agent away")
            if current[1] is None
            else httpx.Response(200, json={"logs": current[1]})
        )

    shown: list[str] = []
    job = client(answer).follow("a", shown.append)
    assert (job.status, job.exit_code) == ("SUCCEEDED", 0)
    assert "".join(shown) == "one\ntwo\nthree\n"


def test_a_head_that_stays_away_ends_the_following() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone")

    with pytest.raises(ClusterUnreachableError, match="Cannot reach the cluster"):
        client(answer).follow("a", str, lost_s=0.0)


def test_a_package_that_is_there_is_not_sent_again() -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.method)
        return httpx.Response(200, json={})

    assert client(answer).upload(Package("_ray_pkg_1.zip", b"zip", ())) == "gcs://_ray_pkg_1.zip"
    assert sent == ["GET"]


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [(401, None, "demands a token"), (403, "bad", "refuses the token"), (401, "bad", "refuses the token")],
)
def test_tokens(status: int, token: str | None, said: str) -> None:
    with pytest.raises(ClusterUnreachableError, match=said):
        client(lambda request: httpx.Response(status, text="no"), token).ray_version()


def test_the_token_travels_as_bearer() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={"ray_version": "2.60.0"})

    assert client(answer, "t").ray_version() == "2.60.0"
    assert seen == ["Bearer t"]


def test_an_unknown_job_lists_those_there_are() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(200, json=[record("RUNNING")]) if request.url.path == "/api/jobs/" else httpx.Response(404)
        )

    with pytest.raises(RequestError, match="no such job") as caught:
        client(answer).stop("b")
    assert "Jobs there: a" in caught.value.message


def test_another_web_server_is_not_taken_for_a_head() -> None:
    with pytest.raises(ClusterUnreachableError, match="has no Jobs API"):
        client(lambda request: httpx.Response(200, html="<html>")).ray_version()


def test_a_failure_of_the_head_keeps_its_last_line() -> None:
    with pytest.raises(RunError, match="answered 500: ValueError: bad env"):
        client(lambda request: httpx.Response(500, text="Traceback\n  x\nValueError: bad env\n")).jobs()


def test_a_gcs_address_is_not_a_url() -> None:
    with pytest.raises(RequestError, match="not a URL"):
        JobsClient("10.0.0.5:6379")
