"""MLflow: a run's points as metrics, its resolved spec as parameters.

Invariant: one MLflow run a training, found by its tag; a metric is sent with its record's time, and the server keeps
one of several that are alike, so that sending again adds nothing.

Covered: servers over HTTP, databases by URI. Not covered: artifacts (the bundle lies in the run folder), the registry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.spec.tracking import MlflowSpec
from trainers.trackers.points import Point, Story

KEY_TAG = "manta.key"
METRICS_A_CALL, PARAMETERS_A_CALL = 1000, 100  # MLflow's own limits of log_batch
PARAMETER_LENGTH = 6000  # also MLflow's
STATUSES = {"finished": "FINISHED", "failed": "FAILED"}
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its default of 7 with growing pauses is minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set by the process that sends, where the user has not set them."""


def send_to_mlflow(spec: MlflowSpec, story: Story, *, name: str, parameters: Mapping[str, str], status: str) -> str:
    """Returns the MLflow run's id. Raises MLflow's errors."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=spec.uri)
    run = _run(client, spec, story, name)
    run_id = run.info.run_id
    for points in _pieces(list(story.points), METRICS_A_CALL):
        client.log_batch(run_id, metrics=[Metric(p.name, p.value, _milliseconds(p.time_s), p.step) for p in points])
    new = [Param(key, value[:PARAMETER_LENGTH]) for key, value in parameters.items() if key not in run.data.params]
    for some in _pieces(new, PARAMETERS_A_CALL):
        client.log_batch(run_id, params=some)
    client.set_tag(run_id, "manta.values_not_finite", str(story.left_out))
    client.set_terminated(run_id, STATUSES[status])
    return run_id


def _run(client: Any, spec: MlflowSpec, story: Story, name: str) -> Any:
    """The MLflow run of this training, made where there is none."""
    found = client.get_experiment_by_name(spec.experiment)
    experiment = found.experiment_id if found else client.create_experiment(spec.experiment)
    runs = client.search_runs([experiment], filter_string=f"tags.`{KEY_TAG}` = '{story.key}'", max_results=1)
    if runs:
        return runs[0]
    first: Point | None = story.points[0] if story.points else None
    return client.create_run(
        experiment,
        start_time=_milliseconds(first.time_s) if first else None,
        tags={KEY_TAG: story.key},
        run_name=name,
    )


def _pieces(items: list[Any], size: int) -> Iterator[list[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _milliseconds(time_s: float) -> int:
    return int(time_s * 1000)
