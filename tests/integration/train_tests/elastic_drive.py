"""A driver on a cluster of its own whose nodes come and go: `python -m tests.integration.train_tests.elastic_drive`.

4 workers on two nodes -> one node gets a notice of preemption -> 2 workers -> another node joins -> 4 workers
-> kill -9 of that node -> 2 workers -> the end
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cluster.runtime.environment import with_ray_environment

os.environ.update(with_ray_environment(dict(os.environ)))  # before anything imports ray

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

import trainers.launch.fit as fit_module
from cluster.spec.train import WorkersSpec
from cluster.telemetry.events import Message, TrainStep, read_events
from tests.e2e.cluster_tests.head import free_ports
from tests.unit.loop_tests.rig import request_for
from trainers.launch.fit import launch_fit
from trainers.loop import FitRequest

HERE = "tests.integration.train_tests.victims"
PHASE_S = 120.0
STEPS = 6  # updates that a phase makes before something happens
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


def elastic_request(folder: Path, **more: object) -> FitRequest:
    """400 updates in float64; slow until `folder/free` exists."""
    options = {
        "batch": 12,
        "micro": 3,
        "workers": 4,
        "checkpoints": folder / "checkpoints",
        "factory": f"{HERE}:build_paced",
        "arguments": {"until": str(folder / "free"), "wait_s": 0.25},
        "epochs": 100,
        "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        "keep": "last",
        "checkpoint": {"every_epochs": 20},
        "log_every_updates": 1,
    }
    return request_for(folder / "data", **{**options, **more})  # type: ignore[arg-type]


class Director:
    """Makes things happen to the cluster when the run's events say that it is time."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.facts = cluster, folder, dict[str, object]()
        self.second = cluster.add_node(**NODE)
        self.run: Future[object] = Future()

    def direct(self) -> None:
        self.after(self.steps() + STEPS)
        self.notice(self.second.node_id)
        self.until(lambda: self.said("with 2 of 4") == 1)
        self.after(self.steps() + STEPS)
        third = self.cluster.add_node(**NODE)
        self.until(lambda: self.said("with 4 of 4") == 1)
        self.after(self.steps() + STEPS)
        raylet = third.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGKILL)
        self.until(lambda: self.said("with 2 of 4") == 2)
        self.after(self.steps() + STEPS)
        (self.folder / "free").touch()

    def notice(self, node: str) -> None:
        """What a cloud's notice becomes in Ray."""
        client = ray._raylet.GcsClient(address=self.cluster.address)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = client.drain_node(node, reason, "spot instance", time.time_ns() // 1_000_000 + 60_000)
        assert accepted, why
        self.facts["steps_at_notice"] = self.steps()

    def steps(self) -> int:
        return sum(isinstance(event, TrainStep) for event in read_events(self.folder / "events.jsonl"))

    def said(self, text: str) -> int:
        events = read_events(self.folder / "events.jsonl")
        return sum(isinstance(event, Message) and text in event.text for event in events)

    def after(self, steps: int) -> None:
        self.until(lambda: self.steps() >= steps)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PHASE_S
        while not condition():
            assert time.monotonic() < deadline, "the run did not get there in time"
            assert not self.run.done(), self.run.exception()
            time.sleep(0.1)


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "events.jsonl").touch()
    fit_module.GROW_POLL_S = 1.0
    temporary = tempfile.mkdtemp(prefix="me-", dir="/tmp")
    (port,) = free_ports(1)
    head = {
        **NODE,
        "include_dashboard": True,
        "temp_dir": temporary,
        "dashboard_agent_listen_port": 0,
        "dashboard_port": port,
    }
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)  # ray.cluster_utils notes the address there in any case
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
    try:
        request = elastic_request(folder, faults={"replacement_wait_s": 8.0, "worker_restarts": 1})
        elastic = request.train.model_copy(update={"workers": WorkersSpec(min=2, max=4)})
        director = Director(cluster, folder)
        with ThreadPoolExecutor(1) as pool:  # nodes are added by the main thread: they want a signal handler
            request = replace(request, train=elastic)
            run = pool.submit(launch_fit, request, events=folder / "events.jsonl", folder=folder / "out")
            director.run = run
            try:
                director.direct()
            finally:
                (folder / "free").touch()
            run.result()
        (folder / "facts.json").write_text(json.dumps(director.facts), encoding="utf-8")
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main()
