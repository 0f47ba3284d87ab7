"""Whatever is at an address, the answer is one clear reason within seconds. Asked of a real gRPC server."""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from cluster.errors import ClusterUnreachableError
from cluster.runtime.join import check as check_module
from cluster.runtime.join.check import check_cluster

MESSAGES: Any = gcs_service_pb2
RECORDS: Any = gcs_pb2
TOKEN = "f" * 64


class FakeHead(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer, gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
    """Answers the three calls of a head."""

    def __init__(self, *, ray_version: str, python_version: str, alive: list[bytes]) -> None:
        self.ray_version, self.python_version, self.alive = ray_version, python_version, alive

    def _admit(self, context: grpc.ServicerContext) -> None:
        if ("authorization", f"Bearer {TOKEN}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: token is missing or incorrect")

    def CheckAlive(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit(context)
        return MESSAGES.CheckAliveReply(ray_version=self.ray_version)

    def InternalKVGet(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit(context)
        facts = {"ray_version": self.ray_version, "python_version": self.python_version}
        return MESSAGES.InternalKVGetReply(value=json.dumps(facts).encode())

    def GetAllNodeInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._admit(context)
        state = RECORDS.GcsNodeInfo.GcsNodeState
        nodes = [RECORDS.GcsNodeInfo(node_id=each, state=state.ALIVE) for each in self.alive]
        dead = RECORDS.GcsNodeInfo(node_id=b"d" * 28, state=state.DEAD)
        return MESSAGES.GetAllNodeInfoReply(node_info_list=[*nodes, dead])


class LateNodes:
    """Another answer each time it is looked at."""

    def __init__(self, answers: list[list[bytes]]) -> None:
        self._answers = iter(answers)

    def __iter__(self) -> Iterator[bytes]:
        return iter(next(self._answers))


@contextmanager
def head(**more: Any) -> Iterator[str]:
    facts = {"ray_version": ray.__version__, "python_version": platform.python_version(), "alive": [b"n" * 28], **more}
    server = grpc.server(ThreadPoolExecutor(2))
    service = FakeHead(**facts)
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(service, server)
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture
def node_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.runtime.join.check._local_nodes", lambda: [(b"n" * 28).hex()])


def refusal(address: str, token: str | None = TOKEN, **more: Any) -> str:
    start = time.monotonic()
    with pytest.raises(ClusterUnreachableError) as caught:
        check_cluster(address, token=token, **more)
    assert time.monotonic() - start < 10
    assert address in caught.value.message
    return caught.value.message


@pytest.mark.usefixtures("node_is_here")
def test_a_fitting_cluster_is_accepted() -> None:
    with head() as address:
        facts = check_cluster(address, token=TOKEN)
    assert (facts.ray_version, facts.num_nodes_alive) == (ray.__version__, 1)


@pytest.mark.usefixtures("node_is_here")
def test_wrong_and_missing_token_are_told_apart() -> None:
    with head() as address:
        assert "refuses the token that was given" in refusal(address, "0" * 64)
        assert "demands a token and none was given" in refusal(address, None)


@pytest.mark.usefixtures("node_is_here")
def test_another_version_names_both() -> None:
    with head(ray_version="2.55.1") as address:
        message = refusal(address)
    assert "Ray 2.55.1" in message
    assert f"this is Ray {ray.__version__}" in message
    with head(python_version="3.9.2") as address:
        assert "Python 3.9.2" in refusal(address)


def test_a_head_without_live_nodes_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "FIRST_NODE_WAIT_S", 0.3)
    with head(alive=[]) as address:
        assert "no node of it is alive" in refusal(address)


@pytest.mark.usefixtures("node_is_here")
def test_a_head_that_has_just_started_is_given_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "FIRST_NODE_POLL_S", 0.0)
    late = LateNodes([[], [], [b"n" * 28]])
    with head(alive=late) as address:
        assert check_cluster(address, token=TOKEN).num_nodes_alive == 1


def test_a_cluster_without_a_node_on_this_host_is_foreign() -> None:
    with head() as address:
        message = refusal(address)
    assert "none of them on this host" in message
    assert "manta submit" in message


def test_nothing_there_and_something_else_there() -> None:
    assert "nothing answers there" in refusal("127.0.0.1:9")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert "is not a Ray head" in refusal(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


def test_a_silent_listener_does_not_hang() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert "answer" in refusal(address, timeout_s=0.5)


@pytest.mark.parametrize(
    ("address", "hint"),
    [("http://head:8265", "manta submit"), ("ray://head:10001", "Ray Client"), ("auto", "HOST:PORT")],
)
def test_other_forms_of_address_get_their_own_hint(address: str, hint: str) -> None:
    assert hint in refusal(address)
