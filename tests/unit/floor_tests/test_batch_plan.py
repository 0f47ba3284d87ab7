"""Rows, workers and micro-batches: one plan, whoever asks it."""

from __future__ import annotations

import json

import pytest

from cluster.errors import SpecError
from cluster.spec import parse_spec
from cluster.spec.batch_plan import BatchPlan, batch_size_of_epoch, updates_of_epochs
from cluster.spec.train import TrainSpec, WorkersSpec

SPEC = "version: 1\ndata: {source: {kind: sklearn, dataset: digits}}\n"


def train_spec(**keys: object) -> TrainSpec:
    return TrainSpec.model_validate_json(json.dumps(keys))


def plan_of(batch: int, micro: int, workers: int, rows: int = 1000, **keys: object) -> BatchPlan:
    train = train_spec(batch_size_global=batch, batch_size_per_worker=micro, workers=workers, **keys)
    return BatchPlan.of(train, rows)


@pytest.mark.parametrize("batch", [1, 7, 64, 96, 100])
@pytest.mark.parametrize("micro", [1, 3, 16, 256])
def test_workers_times_micro_batch_times_accumulation_is_the_global_batch_or_just_above(batch: int, micro: int) -> None:
    for workers in range(1, min(batch, 5) + 1):
        plan = plan_of(batch, micro, workers)
        for same in (plan, *(plan.for_workers(other) for other in range(1, min(batch, 5) + 1))):
            rows = same.workers * same.batch_size_per_worker * same.accumulation_steps
            assert rows >= batch > rows - same.workers * same.batch_size_per_worker
            assert same.batch_size_per_worker <= same.share <= same.smallest_share + 1
            assert (same.batch_size_global, same.updates_total) == (batch, plan.updates_total)


def test_fewer_workers_accumulate_more_and_more_workers_have_smaller_micro_batches() -> None:
    plan = plan_of(64, 16, 4)
    assert (plan.batch_size_per_worker, plan.accumulation_steps) == (16, 1)
    fewer = plan.for_workers(3)
    assert (fewer.workers, fewer.batch_size_per_worker, fewer.accumulation_steps) == (3, 16, 2)
    assert fewer.equation() == "3 workers × 16 micro-batch × 2 accumulation ≥ 64 global batch"
    assert plan.for_workers(2).for_workers(4) == plan
    trial = plan_of(96, 16, 3).for_workers(1)
    assert (trial.workers, trial.batch_size_per_worker, trial.accumulation_steps) == (1, 16, 6)
    more = plan.for_workers(8)
    assert (more.batch_size_per_worker, more.accumulation_steps) == (8, 1)


def test_another_micro_batch_is_at_most_a_workers_share() -> None:
    plan = plan_of(64, 64, 2)
    assert (plan.batch_size_per_worker, plan.accumulation_steps) == (32, 1)
    smaller = plan.for_micro_batch(12)
    assert (smaller.batch_size_per_worker, smaller.accumulation_steps) == (12, 3)
    alone = plan.for_workers(1).for_micro_batch(64)
    assert (alone.workers, alone.batch_size_per_worker, alone.accumulation_steps) == (1, 64, 1)


def test_a_plan_that_was_written_before_is_read_and_written_the_same() -> None:
    old = {
        "batch_size_global": 64,
        "batch_size_per_worker": 16,
        "workers": 2,
        "accumulation_steps": 2,
        "updates_per_epoch": 16,
        "updates_total": 160,
    }
    plan = BatchPlan.model_validate_json(json.dumps(old))
    assert plan == plan_of(64, 16, 2, epochs=10)
    assert plan.model_dump(mode="json") == old


def test_a_global_batch_smaller_than_the_workers_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one sample"):
        plan_of(2, 1, 3)


def test_a_batch_grows_linearly_or_by_milestones_and_updates_follow() -> None:
    linear = train_spec(epochs=4, growth={"factor": 4.0})
    assert [batch_size_of_epoch(linear, 16, epoch) for epoch in range(4)] == [16, 32, 48, 64]
    steps = train_spec(epochs=5, growth={"factor": 4.0, "milestones": [1, 3]})
    assert [batch_size_of_epoch(steps, 16, epoch) for epoch in range(5)] == [16, 32, 32, 64, 64]
    assert updates_of_epochs(steps, 16, 100) == (7, 4, 4, 2, 2)
    plan = plan_of(16, 8, 1, rows=100, epochs=4, growth={"factor": 4.0})
    assert (plan.updates_per_epoch, plan.updates_total) == (7, 7 + 4 + 3 + 2)


def test_workers_are_a_number_or_a_range_and_the_plan_is_made_for_the_most() -> None:
    spec = parse_spec(SPEC + "train: {workers: {min: 2, max: 4}, batch_size_global: 64, batch_size_per_worker: 4}")
    assert spec.train.workers == WorkersSpec(min=2, max=4)
    plan = BatchPlan.of(spec.train, 1000)
    assert (plan.workers, plan.batch_size_per_worker, plan.accumulation_steps) == (4, 4, 4)
    again = parse_spec(json.dumps(spec.model_dump(mode="json")))
    assert again == spec, "what is written to resolved.yaml is read again"


def test_min_above_max_is_refused() -> None:
    with pytest.raises(SpecError, match="min must not be above max"):
        parse_spec(SPEC + "train: {workers: {min: 5, max: 4}}")
