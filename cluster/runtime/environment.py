"""Environment variables that Ray 2.60 reads at import or process start, decided in one place.

They must be set before `import ray` in the driver, and before `ray start` on every node of a cluster (docker/ sets
them in the images). Sources are the constants files of ray 2.60.0 named beside each group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

RAY_ENVIRONMENT: dict[str, str] = {
    # ray/serve/_private/constants.py: HAProxy in front of uvicorn inside each replica, user code on its loop
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # clients that send or read slowly hold a connection and 20 KiB each until their time is over; cut to four fifths
    # of the files that HAProxy may open (private/haproxy_config.py)
    "RAY_SERVE_HAPROXY_MAXCONN": "16384",
    # three looks in a row that find no HAProxy start its actor anew (10 s by default)
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # a busy host takes longer than 5 s to start one, which would be killed on its way
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(128 << 20),
    # of one gRPC call from outside: twice what HTTP takes, as in `python -m serve` (Ray Serve's own: 2 GiB)
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(128 << 20),
    # infer requests reach our door before Ray Serve's per-request wrapping (serve/deployments/middleware.py)
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.deployments.middleware:middlewares",
    # a request whose replica died without a word is sent to another one: inference changes nothing, so that running
    # it twice is safe; it works for bodies within HAProxy's buffer of 16 KiB
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # how often replicas tell the autoscaler what they do (10 s by default: too slow to follow traffic)
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    # ray/train/v2/_internal/constants.py: how often the controller polls its workers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # the same file: workers wait for their room as long as it takes, which trainers/launch/capacity.py says in words
    # (ray/util/placement_group.py counts in 32-bit milliseconds: 20 days)
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(20 * 24 * 3600),
    # ray/_private/ray_constants.py: no report of usage to the outside
    "RAY_USAGE_STATS_ENABLED": "0",
    # ray/tune: result files, TensorBoard and progress tables are made from our own events
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # ray/tune/tune.py: its handler of Ctrl-C would outlive the search and swallow the next one
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}

CLUSTER_ENVIRONMENT: dict[str, str] = {
    # ray/_private/authentication: say it on every node; a head without a token would otherwise start open
    "RAY_AUTH_MODE": "token",
    # ray/dashboard/modules/job/job_manager.py: the head has no CPUs to give, drivers run on workers
    "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES": "1",
    # ray/dashboard/modules/job/job_supervisor.py: time for a last checkpoint after 'manta stop' (Ray's own: 3 s)
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
    # src/ray/common/ray_config_def.h: a silent node is dead after 5 × (3 + 2) = 25 s, not after 65 s
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_period_ms": "2000",
    # ray/_private/ray_constants.py: between SIGTERM and a node's end its endpoints finish what they have accepted
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "20",
}
"""What the nodes of a shared cluster get besides RAY_ENVIRONMENT (docker/compose.yaml sets it)."""


def with_ray_environment(environment: dict[str, str]) -> dict[str, str]:
    """A copy of `environment` with the variables above; a value that the user has set wins."""
    return {**RAY_ENVIRONMENT, **environment}


@contextmanager
def variables_set(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, for Ray's processes that it starts; what was there before is put back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
