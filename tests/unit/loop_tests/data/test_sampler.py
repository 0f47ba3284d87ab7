"""Order is a pure function of (seed, epoch, position); workers partition it: "Rows and random numbers" of
docs/training_rules.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.spec.batch_plan import updates_of_epoch
from tests.unit.loop_tests.rig import request_for, run_ranks, start, write_data
from trainers.loop.data.sampler import epoch_order, part, window_of
from trainers.loop.distributed.collectives import sum_over_workers
from trainers.loop.distributed.world import World
from trainers.loop.evaluate import evaluate_split

ROWS, SEED = 103, 7


def test_set_epoch_reshuffles_and_ranks_partition() -> None:
    orders = [epoch_order(SEED, epoch, ROWS) for epoch in (0, 1, 1)]
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], orders[2])
    own = [window_of(orders[0], 0, 0, ROWS, World(rank, 4)).own for rank in range(4)]
    assert Counter(np.concatenate(own).tolist()) == Counter(range(ROWS)), "each row exactly once"
    sampler = torch.utils.data.DistributedSampler(range(ROWS), num_replicas=4, rank=0, seed=SEED)  # type: ignore[arg-type]
    assert len(sampler) * 4 == 104, "torch's sampler pads: one row twice"


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 10, 64, 103, 200])
def test_global_batches_do_not_depend_on_the_number_of_workers(workers: int, batch: int) -> None:
    order = epoch_order(SEED, 2, ROWS)
    for index in range(updates_of_epoch(ROWS, batch)):
        parts = [window_of(order, 2, index, batch, World(rank, workers)).own for rank in range(workers)]
        assert np.array_equal(np.concatenate(parts), order[index * batch : (index + 1) * batch])
        sizes = [len(item) for item in parts if len(item)]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 1 or sum(sizes) == 1, "no worker gets a single row while another has more"


def test_parts_are_balanced_and_contiguous() -> None:
    assert [part(10, World(rank, 4)) for rank in range(4)] == [(0, 3), (3, 6), (6, 8), (8, 10)]


def _mean_over_ranks(rank: int) -> tuple[float, float]:
    hits = [1.0] * 90 if rank == 0 else [0.0] * 10
    total, count = sum_over_workers([sum(hits), len(hits)], World(rank, 2), torch.device("cpu"))
    means, ranks = sum_over_workers([sum(hits) / len(hits), 1], World(rank, 2), torch.device("cpu"))
    return total / count, means / ranks


def test_mean_of_rank_means_is_not_the_mean(tmp_path: Path) -> None:
    for truth, shortcut in run_ranks(2, _mean_over_ranks, tmp_path):
        assert truth == pytest.approx(0.9)
        assert shortcut == pytest.approx(0.5)


def _validate(rank: int, prepared: str) -> dict[str, float]:
    job, state = start(request_for(Path(prepared), batch=4, micro=4, workers=2))
    with torch.no_grad():  # only validation row 0 is answered right: bias to its class, targets moved away elsewhere
        for parameter in state.exchange.parameters:
            parameter.zero_()
        state.exchange.parameters[-1][0] = 1.0
    return evaluate_split(job, state, job.validation, "validation")


def test_eval_over_padded_sampler_biases_the_metric(tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 27)
    targets = np.array([0, *[1] * 8])
    np.save(prepared / "validation" / "targets.npy", targets)
    for metrics in run_ranks(2, _validate, tmp_path / "ranks", str(prepared)):
        assert metrics["validation.accuracy"] == pytest.approx(1 / 9), "a padded sampler would say 2/10"
