"""Faults on Ray Serve. Each asserts that the *other* requests are answered, and with whose rows."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.errors import PortInUseError
from cluster.runtime.ports import claim_port
from cluster.runtime.private.haproxy_guard import STAND_IN, others
from cluster.runtime.ray_private import serve_logs_folder
from cluster.spec.serve import ReplicaSpec
from serve.client import EndpointClient
from serve.config import EndpointConfig
from serve.deployments.endpoint import Endpoint, RolloutOptions, configuration, deploy, undeploy
from tests.bundles import make_bundle
from tests.integration.serve_tests.conftest import one_version

ROW = np.zeros((1, 1, 8, 8), np.float32)
DEADLINE_S = 60.0


class Clients:
    """Four clients that ask without pause and keep every answer that was not 200."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: Counter[int] = Counter()
        self.bodies: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(4)]

    def _ask(self) -> None:
        with EndpointClient(self.url, "faults") as client:
            body = {"inputs": [{"name": "x", "shape": ROW.shape, "datatype": "FP32", "data": ROW.ravel().tolist()}]}
            while not self._stop.is_set():
                try:
                    response = client._http.post(f"{self.url}/v2/models/faults/infer", json=body)
                    status, text = response.status_code, response.text
                except httpx.TransportError as error:
                    status, text = 0, repr(error)
                with self._lock:
                    self.answers[status] += 1
                    if status != 200:
                        self.bodies.append(text)

    @contextmanager
    def running(self) -> Iterator[Clients]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(30)

    def wait(self, more: int) -> None:
        """Until `more` further requests were answered."""
        target = self.answers[200] + more
        eventually(lambda: self.answers[200] >= target)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def replica_pids() -> set[int]:
    return {p.pid for p in ours("ServeReplica") if "faults" in "".join(p.cmdline())}


def ours(name: str) -> list[psutil.Process]:
    """Processes that this test session's own Ray started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(name in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def faults(endpoint: EndpointClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Two replicas."""
    bundle = make_bundle(tmp_path_factory.mktemp("faults") / "bundle", name="faults")
    yield deploy(one_version("faults", bundle, replicas=ReplicaSpec(min=2, max=2), access_log=0.2))
    undeploy("faults")


def test_one_look_and_one_scrape_are_about_all_replicas(faults: Endpoint) -> None:
    with Clients(faults.url).running() as clients:
        clients.wait(100)
    with EndpointClient(faults.url, "faults") as client:
        (entry,) = client.get("/stats")
        text = httpx.get(f"{faults.url}/metrics", trust_env=False).text
    assert (len(entry["replicas"]), entry["missing"]) == (2, [])
    assert entry["outcomes"]["success"] >= 100
    assert entry["process"]["memory_bytes"] == sum(each["memory_bytes"] for each in entry["replicas"].values())
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    up = {sample.labels["replica"]: sample.value for sample in samples if sample.name == "manta_serve_replica_up"}
    assert up == dict.fromkeys(entry["replicas"], 1)
    success = {
        sample.labels["replica"]: sample.value
        for sample in samples
        if sample.name == "manta_serve_requests_total" and sample.labels["outcome"] == "success"
    }
    assert sum(success.values()) == entry["outcomes"]["success"]
    assert {name: value for name, value in success.items() if value} == {
        name: each["requests"] for name, each in entry["replicas"].items() if each["requests"]
    }


def test_a_share_of_the_requests_is_in_the_nodes_log_without_what_was_said(faults: Endpoint) -> None:
    logs = serve_logs_folder()

    def lines() -> list[str]:
        return [line for path in logs.glob("access_faults_*.jsonl") for line in path.read_text().splitlines()]

    with Clients(faults.url).running() as clients:
        clients.wait(200)
    found = [json.loads(line) for line in lines() if line.endswith("}")]
    infer = [line for line in found if line["path"] == "/faults/v2/models/faults/infer"]
    assert 0 < len(infer) < clients.answers[200]
    assert {line["endpoint"] for line in found} == {"faults"}
    assert "inputs" not in "".join(lines())


def test_a_killed_replica_costs_at_most_what_it_held(faults: Endpoint) -> None:
    before = replica_pids()
    assert len(before) == 2
    with Clients(faults.url).running() as clients:
        clients.wait(200)
        os.kill(min(before), signal.SIGKILL)
        clients.wait(500)
        eventually(lambda: len(replica_pids() - before) == 1)
        clients.wait(200)
    lost = sum(count for status, count in clients.answers.items() if status != 200)
    assert lost <= 4, "each client had at most one request on the replica"
    assert set(clients.answers) <= {200, 503}, clients.bodies
    assert all("error" in body and "try again" in body for body in clients.bodies)


def proxies() -> list[psutil.Process]:
    """HAProxy's processes of this test's Ray."""
    return [process for process in ours("haproxy.cfg") if "haproxy" in process.name()]


def test_a_killed_proxy_is_back_at_once(faults: Endpoint) -> None:
    """Two seconds, and three for a busy machine; then Ray Serve's own takes over from the one that stands in."""
    killed = proxies()  # two for a moment, while one is replaced after a reload
    command = killed[0].cmdline()
    stand_in = Path(command[command.index("-f") + 1]).with_name(STAND_IN)
    for proxy in killed:
        proxy.kill()
    started = time.monotonic()
    with EndpointClient(faults.url, "faults", timeout_s=2.0) as client:
        eventually(client.is_ready)
        assert time.monotonic() - started < 5.0
        assert client.infer({"x": ROW}).version == "1"
        # asking: what stands in ends when the connections that it has are used once more
        eventually(lambda: client.is_ready() and bool(proxies()) and not others(stand_in))
        eventually(client.is_ready)
        assert client.infer({"x": ROW}).version == "1"


def test_a_killed_controller_is_not_missed(faults: Endpoint) -> None:
    (controller,) = ours("ServeController")
    with Clients(faults.url).running() as clients:
        clients.wait(50)
        controller.kill()
        clients.wait(200)
        eventually(lambda: {p.pid for p in ours("ServeController")} - {controller.pid} != set())
        clients.wait(200)
    assert set(clients.answers) == {200}


def test_an_unknown_endpoint_is_a_json_error_of_the_proxy(faults: Endpoint) -> None:
    base = faults.url.rsplit("/", 1)[0]
    response = httpx.get(f"{base}/nobody/v2", trust_env=False)
    assert (response.status_code, list(response.json())) == (404, ["error"])


def test_the_proxys_side_doors_are_closed(faults: Endpoint) -> None:
    proxy = max(proxies(), key=lambda process: process.create_time())
    listening = {c.laddr.ip for c in proxy.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    config = Path(proxy.cmdline()[proxy.cmdline().index("-f") + 1])
    assert stat.S_IMODE((config.parent / "admin.sock").stat().st_mode) == 0o600


def test_a_replicas_own_port_asks_for_the_same_tokens(faults: Endpoint, tmp_path: Path) -> None:
    """HAProxy's way in is not the only one: the replicas' ports are checked as the proxy's are."""
    (tmp_path / "tokens").write_text("secret-token-0123456789\n")
    config = configuration("faults")
    assert config is not None
    deploy(config.with_values({"token_file": str(tmp_path / "tokens")}))
    try:
        ports = replica_ports()
        assert len(ports) >= 2
        for port in ports:
            url = f"http://127.0.0.1:{port}/faults/v2/models/faults"
            assert httpx.get(url, trust_env=False).status_code == 401
            headers = {"Authorization": "Bearer secret-token-0123456789"}
            assert httpx.get(url, headers=headers, trust_env=False).status_code == 200
    finally:
        deploy(config, RolloutOptions(token="secret-token-0123456789"))


class Admin:
    """Who may load and unload 'faults', while its configuration says so."""

    def __init__(self, url: str, config: EndpointConfig) -> None:
        self.url, self.config = url, config

    def tell(self, verb: str) -> None:
        headers = {"Authorization": "Bearer admin-token-0123456789"}
        path = f"{self.url}/v2/repository/models/faults/{verb}"
        answer = httpx.post(path, headers=headers, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text

    def ready(self) -> set[int]:
        """What each replica says on its own port."""
        urls = [f"http://127.0.0.1:{port}/faults/v2/models/faults/ready" for port in replica_ports()]
        return {httpx.get(url, trust_env=False).status_code for url in urls}


@pytest.fixture
def admin(faults: Endpoint, tmp_path: Path) -> Iterator[Admin]:
    (tmp_path / "admin").write_text("admin-token-0123456789\n")
    config = configuration("faults")
    assert config is not None
    closed = config.with_values({"admin_token_file": str(tmp_path / "admin")})
    deploy(closed)
    yield Admin(faults.url, closed)
    deploy(config)


def test_load_and_unload_reach_every_replica(admin: Admin) -> None:
    for verb, status in (("unload", 503), ("load", 200)):
        admin.tell(verb)
        assert admin.ready() == {status}


def test_a_deploy_loads_an_unloaded_endpoint_also_with_the_configuration_that_was_there(admin: Admin) -> None:
    admin.tell("unload")
    deploy(admin.config)
    eventually(lambda: admin.ready() == {200})


@pytest.mark.slow  # a replica starts anew
def test_a_replica_that_starts_after_an_unload_loads_nothing_until_it_is_told(admin: Admin) -> None:
    admin.tell("unload")
    before = replica_pids()
    os.kill(min(before), signal.SIGKILL)
    eventually(lambda: len(replica_pids() - before) == 1 and len(replica_ports()) == 2)
    assert admin.ready() == {503}
    admin.tell("load")
    eventually(lambda: admin.ready() == {200})


def replica_ports() -> set[int]:
    """HTTP ports of the replicas of 'faults': Ray Serve takes them from 30000 on."""
    pids = replica_pids()
    return {
        connection.laddr.port
        for process in ours("ServeReplica")
        if process.pid in pids
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and 30_000 <= connection.laddr.port < 31_000
    }


def test_a_port_in_use_names_its_holder() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(PortInUseError, match=f"pid {os.getpid()}"):
            claim_port("127.0.0.1", held.getsockname()[1])
