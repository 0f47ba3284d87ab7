"""Prometheus metrics of one process, made from its statistics at each scrape: counting costs nothing extra.

Names start with `manta_serve_`; labels are `model`, `version` and `replica`. One scrape of any replica has the lines of
all (`merge`): Prometheus sums over `replica`. A GPU that several replicas share comes once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from cluster.probe.gpus import GpuSource, NvmlSource
from serve.handlers.peers import TIMEOUT_S
from serve.models.model import ServedModel
from serve.models.repository import ModelRepository

LABELS = ("model", "version", "replica")
REQUESTS = "requests by outcome: success, failed, bad_request, queue_full, deadline or canceled"
REPLICA_UP = f"1 for a replica that answered, 0 for one that did not within {TIMEOUT_S:g} s"
GPU_GAUGES = {
    "memory_used_bytes": "memory in use on the GPU",
    "memory_total_bytes": "memory of the GPU",
    "utilization_percent": "share of time in which a kernel ran",
    "power_watts": "power draw",
    "temperature_celsius": "temperature",
    "ecc_uncorrected": "uncorrected memory errors since the driver started",
}


class EndpointMetrics:
    """A Prometheus collector over a repository."""

    def __init__(self, repository: ModelRepository, replica: str, gpus: GpuSource | None = None) -> None:
        self._repository = repository
        self._replica = replica
        self._gpus = gpus or NvmlSource()

    def collect(self) -> Iterator[Any]:
        """Called by Prometheus' client for each scrape."""
        models = list(self._repository.models.values())
        requests = CounterMetricFamily("manta_serve_requests", REQUESTS, labels=(*LABELS, "outcome"))
        rows = CounterMetricFamily("manta_serve_rows", "rows answered", labels=LABELS)
        calls = CounterMetricFamily("manta_serve_engine_calls", "engine calls", labels=LABELS)
        batches = CounterMetricFamily(
            "manta_serve_batch_rows", "engine calls by rows of the call", labels=(*LABELS, "rows")
        )
        queued = GaugeMetricFamily("manta_serve_queued_rows", "rows that wait for the engine", labels=LABELS)
        oldest = GaugeMetricFamily("manta_serve_oldest_wait_seconds", "wait of the oldest request", labels=LABELS)
        replica = self._replica
        for model in models:
            labels, statistics = (model.name, model.version, replica), model.statistics
            for outcome, count in sorted(statistics.outcomes.items()):
                requests.add_metric((*labels, outcome), count)
            rows.add_metric(labels, statistics.inference_count)
            calls.add_metric(labels, statistics.execution_count)
            for size, batch in sorted(statistics.batches.items()):
                batches.add_metric((*labels, str(size)), batch.compute_infer.count)
            queued.add_metric(labels, model.batcher.queued_rows)
            oldest.add_metric(labels, model.batcher.oldest_wait_s)
        yield from (requests, rows, calls, batches, queued, oldest)
        yield self._unseen_family(models)
        for phase in ("queue", "compute", "total"):
            family = HistogramMetricFamily(f"manta_serve_{phase}_seconds", f"{phase} time of a request", labels=LABELS)
            for model in models:
                histogram = model.statistics.histograms[phase]
                family.add_metric(
                    (model.name, model.version, replica), histogram.cumulative(), sum_value=histogram.sum_s
                )
            yield family
        up = GaugeMetricFamily("manta_serve_replica_up", REPLICA_UP, labels=("model", "replica"))
        up.add_metric((self._repository.name, replica), 1)
        yield up
        yield from self._gpu_families()

    def _unseen_family(self, models: Iterable[ServedModel]) -> Any:
        what = "values of raw rows that training did not have"
        family = CounterMetricFamily("manta_serve_unseen_values", what, labels=(*LABELS, "column"))
        for model in models:
            for column, count in sorted(model.statistics.unseen.items()):
                family.add_metric((model.name, model.version, self._replica, column), count)
        return family

    def _gpu_families(self) -> Iterator[Any]:
        reading = self._gpus.read()
        for field, what in GPU_GAUGES.items():
            family = GaugeMetricFamily(f"manta_serve_gpu_{field}", what, labels=("gpu",))
            for gpu in reading.gpus or ():
                value = getattr(gpu, field)
                if value is not None:  # a value that cannot be read is absent, never 0
                    family.add_metric((gpu.uuid,), value)
            yield family


def render(repository: ModelRepository, replica: str) -> bytes:
    """The text that /metrics answers. Blocks for some milliseconds: call it off the event loop."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EndpointMetrics(repository, replica))
    return generate_latest(registry)


def merge(own: bytes, others: Mapping[str, bytes | None], endpoint: str) -> bytes:
    """One text over all replicas: `own` and what the others answered; None marks one that did not. Blocks."""
    families: dict[str, Metric] = {}
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    for text in (own, *(text for text in others.values() if text is not None)):
        for family in text_string_to_metric_families(text.decode()):
            kept = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                if key not in seen:  # a GPU that two replicas share
                    seen.add(key)
                    kept.samples.append(sample)
    for replica in (name for name, text in others.items() if text is None):
        labels = {"model": endpoint, "replica": replica}
        families["manta_serve_replica_up"].add_sample("manta_serve_replica_up", labels, 0)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(list(families.values())))
    return generate_latest(registry)


class _Fixed:
    """A collector of families that are there."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
