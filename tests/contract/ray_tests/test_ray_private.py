"""What Manta uses of Ray beyond its documented names is there in the installed Ray (cluster/runtime/ray_private.py)."""

from __future__ import annotations

import importlib
import inspect
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.runtime.environment import CLUSTER_ENVIRONMENT, RAY_ENVIRONMENT
from cluster.runtime.join.token import MODE_VARIABLE, TOKEN_PATH_VARIABLE, TOKEN_VARIABLE
from cluster.runtime.node import RESOURCES_VARIABLE
from cluster.runtime.private.haproxy import place_environment
from cluster.runtime.ray_private import READ_IN, NeverPauses, error_of_worker, put_into_bracket, tune_failures_through

REMEDY = f"it was read in Ray {READ_IN}: read it again, and mend cluster/runtime/ray_private.py"
USED = [
    ("ray._private.state", "available_resources_per_node", ""),
    ("ray._private.state", "state.get_draining_nodes", ""),
    ("ray._private.state", "state._connect_and_get_accessor", ""),
    ("ray._raylet", "GlobalStateAccessor.get_job_table", ""),
    ("ray._raylet", "GlobalStateAccessor.get_placement_group_table", ""),
    ("ray._raylet", "Config.initialize", ""),
    ("ray._raylet", "AuthenticationTokenLoader.instance", ""),
    ("ray._raylet", "AuthenticationTokenLoader.reset_cache", ""),
    ("ray.core.generated.gcs_service_pb2_grpc", "NodeInfoGcsServiceStub", "channel"),
    ("ray.core.generated.gcs_service_pb2_grpc", "InternalKVGcsServiceStub", "channel"),
    ("ray.core.generated.gcs_service_pb2", "CheckAliveRequest", ""),
    ("ray.core.generated.gcs_service_pb2", "InternalKVGetRequest", ""),
    ("ray.core.generated.gcs_service_pb2", "GetAllNodeInfoRequest", ""),
    ("ray.core.generated.gcs_pb2", "GcsNodeInfo.GcsNodeState.ALIVE", ""),
    ("ray.experimental.internal_kv", "_internal_kv_exists", "key namespace"),
    ("ray.experimental.internal_kv", "_internal_kv_get", "key namespace"),
    ("ray.experimental.internal_kv", "_internal_kv_put", "key value namespace"),
    ("ray.experimental.internal_kv", "_internal_kv_del", "key namespace"),
    ("ray.serve.context", "_get_global_client", "raise_if_no_controller_running"),
    ("ray.serve._private.client", "ServeControllerClient.get_serve_details", ""),
    ("ray.serve._private.client", "ServeControllerClient.http_config", ""),
    ("ray.serve._private.constants", "SERVE_CONTROLLER_NAME", ""),
    ("ray.serve._private.constants", "SERVE_NAMESPACE", ""),
    ("ray.serve._private.controller", "ServeController.get_target_groups", "app_name from_proxy_manager"),
    ("ray.serve._private.logging_utils", "get_serve_logs_dir", ""),
    ("ray.serve.api", "delete", "name _blocking"),
    ("ray.serve.deployment", "Deployment.options", "version _internal"),
    ("ray.core.generated.gcs_pb2", "JobTableData", ""),
    ("ray.core.generated.gcs_pb2", "PlacementGroupTableData", ""),
    ("ray.train.v2._internal.exceptions", "RayTrainError", ""),
    ("ray.train.v2._internal.exceptions", "WorkerGroupStartupTimeoutError", ""),
    ("ray.train.v2.api.config", "FailureConfig", "max_failures controller_failure_limit max_preemption_failures"),
    ("ray.train.v2.api.exceptions", "TrainingFailedError", ""),
    ("ray.train.v2.api.exceptions", "PreemptionError", ""),
    ("ray.train.torch.config", "_TorchBackend.on_start", "worker_group backend_config"),
    (
        "ray.air.execution._internal.actor_manager",
        "RayActorManager._actor_task_failed",
        "tracked_actor_task exception",
    ),
    ("ray.tune.schedulers", "MedianStoppingRule._on_insufficient_samples", "tune_controller trial time"),
]
VARIABLE_FILES = (
    "_common/usage/usage_constants.py", "_private/ray_constants.py", "_private/utils.py", "air/constants.py",
    "dashboard/consts.py", "dashboard/modules/job/job_supervisor.py", "exceptions.py", "serve/_private/constants.py",
    "train/v2/_internal/constants.py", "tune/constants.py",
)  # fmt: skip


def test_the_private_names_were_read_in_the_installed_ray() -> None:
    assert ray.__version__.split(".")[:2] == READ_IN.split(".")[:2], f"this is Ray {ray.__version__}: {REMEDY}"


@pytest.mark.parametrize(("module", "name", "parameters"), USED, ids=[f"{module}.{name}" for module, name, _ in USED])
def test_ray_has_the_private_name_with_its_parameters(module: str, name: str, parameters: str) -> None:
    try:
        found: Any = reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        pytest.fail(f"Ray {ray.__version__} has no {module}.{name} any more; {REMEDY}")
    if parameters:
        missing = set(parameters.split()) - set(inspect.signature(found).parameters)
        assert not missing, f"{module}.{name} of Ray {ray.__version__} has no {', '.join(missing)} any more; {REMEDY}"


def test_ray_init_takes_the_folder_of_its_sessions() -> None:
    assert '"_temp_dir"' in inspect.getsource(ray.init), REMEDY


def test_a_failure_of_a_trial_goes_through_the_handler_and_the_patch_ends() -> None:
    from ray.air.execution._internal.actor_manager import RayActorManager

    before: Any = RayActorManager._actor_task_failed
    seen: list[BaseException] = []
    with tune_failures_through(lambda tell, error: seen.append(error)):
        manager: Any = RayActorManager.__new__(RayActorManager)
        manager._actor_task_failed(tracked_actor_task=None, exception=(raised := ValueError("x")))
    assert seen == [raised]
    assert RayActorManager._actor_task_failed is before


def test_a_trial_is_put_into_the_bracket_that_was_chosen() -> None:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    scheduler: Any = AsyncHyperBandScheduler(metric="v", mode="max", max_t=9, grace_period=1, brackets=2)
    put_into_bracket(scheduler, "a", lambda rungs: rungs.index(min(rungs)))
    assert scheduler._trial_info["a"] is scheduler._brackets[1], REMEDY


def test_too_few_samples_let_a_trial_go_on() -> None:
    from ray.tune.schedulers import TrialScheduler

    assert NeverPauses()._on_insufficient_samples(None, None, 1.0) == TrialScheduler.CONTINUE


def test_what_a_worker_raised_is_taken_out_of_what_ray_train_hands_on() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    raised = ValueError("x")
    assert error_of_worker(UserExceptionWithTraceback(raised, "Traceback …")) is raised, REMEDY
    assert error_of_worker(raised) is raised


def test_ray_reads_every_variable_that_is_set(tmp_path: Path) -> None:
    folder = Path(ray.__file__).parent
    text = "".join((folder / name).read_text(encoding="utf-8") for name in VARIABLE_FILES)
    ours = {*RAY_ENVIRONMENT, *CLUSTER_ENVIRONMENT, *place_environment(tmp_path), RESOURCES_VARIABLE}
    names = {name for name in ours | {MODE_VARIABLE, TOKEN_VARIABLE, TOKEN_PATH_VARIABLE} if "MANTA" not in name}
    compiled = {name for name in names if name.startswith("RAY_health_")}  # src/ray/common/ray_config_def.h
    assert {name for name in names - compiled if name not in text} == set(), f"Ray {ray.__version__}; {REMEDY}"
    config: Any = importlib.import_module("ray._raylet").Config
    assert [name for name in compiled if not hasattr(config, name.removeprefix("RAY_"))] == []
