"""Every use of Ray that Ray does not document, in one file: internals, names with an underscore, one patch.

Ray may move any of these in any release. Each is a function here, under the file of Ray in which it was read, and
tests/contract/ray_tests/test_ray_private.py finds each in the installed Ray, or fails with the name that has moved.

Invariant: nothing of Ray is loaded before a function is called (Ray Train's and Tune's internals load torch), and no
other file of Manta uses a private name of Ray (tests/meta/test_ray_names.py).

Covered: what is called. Not covered: variables that Ray's processes read (environment.py, private/haproxy.py), the
configuration that Ray Serve writes for HAProxy (private/haproxy_config.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.runtime.environment import variables_set

READ_IN = "2.60.0"
"""The Ray in which these were read."""


# ray/_private/state.py, ray/_private/worker.py


def free_resources_of_nodes() -> dict[str, dict[str, float]]:
    """Node id -> what is free there now; a resource of which nothing is free is left out. Needs a Ray session."""
    from ray._private import state

    found: dict[str, dict[str, float]] = state.available_resources_per_node()
    return found


def draining_nodes() -> set[str]:
    """Ids of the nodes that are draining (preemption, scale-down, a graceful stop). Needs a Ray session."""
    from ray._private import state

    return set(state.state.get_draining_nodes())


@dataclass(frozen=True)
class GroupOfJob:
    """A placement group that waits or stands."""

    run: str
    """Name of the run whose driver made it; the Ray job's id where it is none of ours."""
    waits: bool
    num_bundles: int


def placement_groups() -> tuple[list[GroupOfJob], list[GroupOfJob]]:
    """Those of this process's job, and those of others. Needs a Ray session; blocks on two calls of the head."""
    import ray

    runs = {job.job_id: job.config.metadata.get("manta.run", "") for job in _job_table(with_submission=False)}
    here = bytes.fromhex(ray.get_runtime_context().get_job_id())
    ours: list[GroupOfJob] = []
    others: list[GroupOfJob] = []
    for table in _group_table():
        run = runs.get(table.creator_job_id) or table.creator_job_id.hex()
        found = GroupOfJob(run, table.state != table.CREATED, len(table.bundles))
        (ours if table.creator_job_id == here else others).append(found)
    return ours, others


@dataclass(frozen=True)
class LivingJob:
    """A job of a cluster that has not ended."""

    id: str
    run: str
    """Name of the run that it drives; empty where it is none of ours."""
    since_unix_s: float
    """When it was submitted, else when its driver joined, by the head's clock."""
    held: dict[str, dict[str, float]]
    """Node id -> what its placement groups hold there."""


def living_jobs() -> list[LivingJob]:
    """With what they hold. Needs a Ray session; blocks on two calls of the head."""
    held: dict[bytes, dict[str, dict[str, float]]] = {}
    for table in _group_table():
        for bundle in table.bundles if table.state == table.CREATED else ():
            node = held.setdefault(table.creator_job_id, {}).setdefault(bundle.node_id.hex(), {})
            for name, amount in bundle.unit_resources.items():
                node[name] = node.get(name, 0.0) + amount
    return [
        LivingJob(
            id=job.job_id.hex(),
            run=job.config.metadata.get("manta.run", ""),
            since_unix_s=(job.job_info.start_time or job.start_time) / 1000,
            held=held.get(job.job_id, {}),
        )
        for job in _job_table(with_submission=True)
        if not job.is_dead
    ]


def _job_table(*, with_submission: bool) -> Iterator[Any]:
    from ray._private import state
    from ray.core.generated import gcs_pb2

    messages: Any = gcs_pb2
    accessor = state.state._connect_and_get_accessor()
    skip = {"skip_submission_job_info_field": not with_submission, "skip_is_running_tasks_field": True}
    return (messages.JobTableData.FromString(raw) for raw in accessor.get_job_table(**skip))


def _group_table() -> Iterator[Any]:
    """Placement groups that are not removed."""
    from ray._private import state
    from ray.core.generated import gcs_pb2

    messages: Any = gcs_pb2
    accessor = state.state._connect_and_get_accessor()
    tables = (messages.PlacementGroupTableData.FromString(raw) for raw in accessor.get_placement_group_table())
    return (table for table in tables if table.state != table.REMOVED)


def temporary_folder_argument(folder: Path) -> dict[str, str]:
    """The argument of `ray.init` that puts its sessions into a folder."""
    return {"_temp_dir": str(folder)}


# ray/_raylet.pyx, ray/includes/ray_config.pxi, ray/includes/rpc_token_authentication.pxi


@contextmanager
def authentication_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables as `variables_set` does, and let Ray read mode and token again.

    It reads them once a process; a second session of a process must have its own.
    """
    with ExitStack() as stack:
        stack.callback(_forget_authentication)  # after the variables are put back
        stack.enter_context(variables_set(values))
        _forget_authentication()
        yield


def _forget_authentication() -> None:
    from ray import _raylet

    core: Any = _raylet  # compiled, without types
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


# ray/core/generated: the protocol of a cluster's head (GCS)


class HeadCalls:
    """Plain gRPC calls of a head. Each raises grpc.RpcError."""

    def __init__(self, channel: Any, *, timeout_s: float, metadata: list[tuple[str, str]]) -> None:
        from ray.core.generated import gcs_service_pb2_grpc

        self._more = {"timeout": timeout_s, "metadata": metadata}
        self._nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        self._store = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)

    def ray_version(self) -> str:
        """The head's version; empty when it does not tell."""
        messages = _head_messages()
        return str(self._nodes.CheckAlive(messages.CheckAliveRequest(), **self._more).ray_version)

    def python_version(self) -> str | None:
        """Of the cluster, as Ray compares it with a driver's; None when it is not written there."""
        messages = _head_messages()
        request = messages.InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
        written = self._store.InternalKVGet(request, **self._more).value
        return json.loads(written).get("python_version") if written else None

    def living_nodes(self) -> list[str]:
        """Ids of the nodes that are alive."""
        from ray.core.generated import gcs_pb2

        messages = _head_messages()
        records: Any = gcs_pb2
        alive = records.GcsNodeInfo.GcsNodeState.ALIVE
        listed = self._nodes.GetAllNodeInfo(messages.GetAllNodeInfoRequest(), **self._more).node_info_list
        return [node.node_id.hex() for node in listed if node.state == alive]


def _head_messages() -> Any:
    from ray.core.generated import gcs_service_pb2

    return gcs_service_pb2


# ray/experimental/internal_kv.py: a small store in the head, which outlives every worker


def store_has(key: bytes, *, namespace: bytes) -> bool:
    """Whether the cluster's store has a key. Blocks on one call, as the next three. Needs a Ray session."""
    from ray.experimental import internal_kv

    return bool(internal_kv._internal_kv_exists(key, namespace=namespace))


def store_get(key: bytes, *, namespace: bytes) -> bytes | None:
    """The value of a key, or None."""
    from ray.experimental import internal_kv

    found: bytes | None = internal_kv._internal_kv_get(key, namespace=namespace)
    return found


def store_put(key: bytes, value: bytes, *, namespace: bytes) -> None:
    """Write a value, also over another one."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key, value, namespace=namespace)


def store_delete(key: bytes, *, namespace: bytes) -> None:
    """Take a key away."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key, namespace=namespace)


# ray/serve/context.py, ray/serve/_private/client.py, ray/serve/_private/controller.py, ray/serve/api.py


@dataclass(frozen=True)
class ReplicaTarget:
    """A replica's own port, to which HAProxy sends requests."""

    name: str
    """`…#deployment#replica#id`."""
    ip: str
    port: int


def serve_address() -> tuple[str, int] | None:
    """Host and port of the Ray Serve that runs on this Ray, or None."""
    client = _serve_client()
    return (client.http_config.host, client.http_config.port) if client is not None else None


def serve_details() -> dict[str, Any]:
    """Applications and options as Ray Serve's REST API returns them; empty when it does not run."""
    client = _serve_client()
    return client.get_serve_details() if client is not None else {}


def _serve_client() -> Any:
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


async def replica_targets(application: str) -> list[ReplicaTarget]:
    """The HTTP ports of an application's running replicas, as Ray Serve's controller has them."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    groups = await controller.get_target_groups.remote(app_name=application, from_proxy_manager=True)
    targets = [item for group in groups if str(group.protocol.value).lower() == "http" for item in group.targets]
    return [ReplicaTarget(item.name, item.ip, item.port) for item in targets]


def serve_logs_folder() -> Path:
    """Where Ray Serve's own files of this node are."""
    from ray.serve._private.logging_utils import get_serve_logs_dir

    return Path(get_serve_logs_dir())


def start_deleting(application: str) -> None:
    """Tell Ray Serve to take an application away; returns at once."""
    from ray import serve as ray_serve

    ray_serve.delete(application, _blocking=False)


def with_code_version(deployment: Any, version: str, options: dict[str, Any]) -> Any:
    """A deployment with options and a version of its code.

    Without a version Ray Serve takes every call for new code and replaces all replicas, where a changed user_config
    alone is handed to the replicas as they run.
    """
    return deployment.options(**options, version=version, _internal=True)


# ray/train/v2/_internal/exceptions.py, ray/train/v2/api, ray/train/torch/config.py


def train_error_class() -> type[Exception]:
    """The base of what Ray Train itself raises: "a worker health check failed" and its kin."""
    from ray.train.v2._internal.exceptions import RayTrainError

    return RayTrainError


def start_timeout_class() -> type[Exception]:
    """What Ray Train raises when its workers have waited for room for too long."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return WorkerGroupStartupTimeoutError


def error_of_worker(error: BaseException) -> BaseException:
    """What a worker's function raised, out of what Ray Train hands on of it."""
    return getattr(error, "_base_exc", None) or error


def failure_config(**budgets: Any) -> Any:
    """Ray Train's FailureConfig, of version 2 whatever `ray.train` exports."""
    from ray.train.v2.api.config import FailureConfig

    return FailureConfig(**budgets)


def training_failed_class() -> type[Exception]:
    """What `TorchTrainer.fit` raises, of version 2 whatever `ray.train` exports."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    return TrainingFailedError


def preemption_class() -> type[Exception]:
    """What `TorchTrainer.fit` raises when a node is taken away."""
    from ray.train.v2.api.exceptions import PreemptionError

    return PreemptionError


def torch_backend_class() -> Any:
    """The class that makes torch's process group of Ray Train's workers."""
    from ray.train.torch.config import _TorchBackend

    return _TorchBackend


# ray/air/execution/_internal/actor_manager.py, ray/tune/schedulers/{async_hyperband,median_stopping_rule}.py

Tell = Callable[[BaseException], None]


@contextmanager
def tune_failures_through(handle: Callable[[Tell, BaseException], None]) -> Iterator[None]:
    """While entered, each failure of a trial's actor goes to `handle(tell, error)`, which calls `tell` to go on.

    Patches a class of this process: call it in the driver, for one experiment at a time.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager

    manager_class: Any = RayActorManager
    before = manager_class._actor_task_failed

    def failed(manager: Any, tracked_actor_task: Any, exception: BaseException) -> None:
        handle(lambda error: before(manager, tracked_actor_task, error), exception)

    manager_class._actor_task_failed = failed
    try:
        yield
    finally:
        manager_class._actor_task_failed = before


def put_into_bracket(scheduler: Any, trial_id: str, choose: Callable[[list[int]], int]) -> None:
    """Give a trial the bracket of `AsyncHyperBandScheduler` that `choose` takes by their numbers of rungs."""
    brackets = scheduler._brackets
    scheduler._trial_info[trial_id] = brackets[choose([len(bracket._rungs) for bracket in brackets])]


class NeverPauses:
    """Mixed in before `MedianStoppingRule`: too few samples let a trial go on."""

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        from ray.tune.schedulers import TrialScheduler

        return str(TrialScheduler.CONTINUE)
