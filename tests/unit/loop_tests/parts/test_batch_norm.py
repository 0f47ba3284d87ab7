"""Batch norm: one move a global batch, agreed by all workers; groups of rows that no worker or micro-batch cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cluster.spec.load import validate_spec
from cluster.spec.resolve import DataFacts, GpuFacts, HostFacts, resolve
from cluster.telemetry.events import ListSink
from tests.unit.loop_tests.rig import CLASSES, HERE, request_for, run_ranks, start, write_data
from trainers.loop import fit
from trainers.loop.data.sampler import Window, epoch_order, window_of
from trainers.loop.distributed.world import World
from trainers.loop.parts.batch_norm import BatchNorms
from trainers.loop.step import update

THIS = "tests.unit.loop_tests.parts.test_batch_norm"
CPU = torch.device("cpu")
ROWS, BATCH, GROUP = 44, 16, 4  # windows of 16, 16 and 12 rows
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}


def build_convolutions(double: bool = True) -> nn.Module:
    """Two batch norms of images, one of features without running statistics."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, momentum=None),
        nn.Flatten(), nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, CLASSES),
    )  # fmt: skip
    return net.double() if double else net


def trained(rank: int, prepared: str, workers: int, micro: int) -> dict[str, np.ndarray]:
    request = request_for(
        Path(prepared), batch=BATCH, micro=micro, workers=workers, factory=f"{THIS}:build_convolutions", epochs=2,
        optimizer=SGD, schedule={"name": "constant", "warmup": 0}, batch_norm_rows=GROUP,
    )  # fmt: skip
    result = fit(request, sink=ListSink(), device=CPU)
    return {name: tensor.numpy() for name, tensor in result.weights.items()}


def test_weights_and_statistics_depend_on_neither_workers_nor_micro_batches(tmp_path: Path) -> None:
    prepared = str(write_data(tmp_path / "data", ROWS, image=True))
    expected = trained(0, prepared, 1, BATCH)
    found = [trained(0, prepared, 1, micro) for micro in (4, 7, 12)]
    for workers, micro in ((2, 8), (2, 4), (4, 4)):
        ranks = run_ranks(workers, trained, tmp_path / f"r{workers}.{micro}", prepared, workers, micro)
        for name, value in ranks[0].items():
            assert all(np.array_equal(value, other[name]) for other in ranks), "agreed, to the byte"
        found.append(ranks[0])
    assert int(expected["1.num_batches_tracked"]) == 6, "once a window"
    for weights in found:
        for name, value in expected.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


def test_a_window_moves_the_statistics_by_the_mean_and_variance_of_all_its_rows(tmp_path: Path) -> None:
    """In micro-batches of unequal sizes, without groups: the first layer sees what one batch of all rows would."""
    prepared = write_data(tmp_path / "data", ROWS)
    request = request_for(prepared, batch=11, micro=4, arguments={"norm": True}, optimizer=SGD)
    job, state = start(request)
    layer = state.model[1]  # type: ignore[index]
    seen = state.model[0](job.train.read(np.arange(11)).inputs[0]).detach()  # type: ignore[index]
    update(job, state, Window(0, 0, np.arange(11), 0, 11))
    torch.testing.assert_close(layer.running_mean, 0.1 * seen.mean(dim=0), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * seen.var(dim=0), rtol=1e-10, atol=1e-14)
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("deferred", [False, True])
def test_a_skipped_update_leaves_the_statistics(tmp_path: Path, deferred: bool) -> None:
    request = request_for(
        write_data(tmp_path / "data", ROWS), batch=8, micro=4, arguments={"norm": True}, optimizer=SGD,
        objective=f"{HERE}:poisoned_losses", objective_arguments={"at": [2]},
    )  # fmt: skip
    job, state = start(request)
    layer = state.model[1]  # type: ignore[index]
    assert update(job, state, Window(0, 0, np.arange(8), 0, 8)).made
    state.deferred = deferred
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    assert not update(job, state, Window(0, 1, np.arange(8, 16), 0, 8)).made
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    assert update(job, state, Window(0, 2, np.arange(16, 24), 0, 8)).made
    assert int(layer.num_batches_tracked) == 2


def test_groups_are_normalized_by_themselves_and_evaluation_is_torchs() -> None:
    torch.manual_seed(0)
    plain, layer = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    norms = BatchNorms(layer, 4)
    images = torch.randn(10, 3, 5, 5)
    norms.begin((4, 6))
    expected = torch.cat([F.batch_norm(part, None, None, training=True) for part in images.split((4, 6))])
    torch.testing.assert_close(layer(images), expected)
    sums = torch.zeros(norms.num_sums)
    norms.collect(sums)
    norms.move(sums, False)
    plain(images)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), buffer)
    torch.testing.assert_close(layer.eval()(images), plain.eval()(images))
    assert list(layer.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(("rows", "group", "workers"), [(64, 16, 4), (64, 16, 3), (37, 8, 2), (5, 8, 4), (20, 6, 1)])
def test_each_worker_has_whole_groups_and_they_are_the_same_for_any_micro_batch(
    rows: int, group: int, workers: int
) -> None:
    order, found = epoch_order(7, 0, rows), []
    for micro in (group, 2 * group, rows):
        groups = []
        for rank in range(workers):
            window = window_of(order, 0, 0, rows, World(rank, workers), group)
            slices = window.micro_slices(max(micro, 2 * group))
            assert [where.start for where in slices] == sorted({where.start for where in slices})
            for where in slices:
                at = where.start
                for size in window.group_sizes(where):
                    groups.append((at, at + size))
                    at += size
                assert at == where.stop
        found.append(groups)
        assert sum(stop - start for start, stop in groups) == rows, "each row once"
        assert all(stop - start >= min(group, rows) for start, stop in groups)
    assert found[0] == found[1] == found[2]


def test_memory_for_less_than_a_group_still_trains() -> None:
    window = window_of(epoch_order(7, 0, 32), 0, 0, 32, World(), 16)
    assert [where.stop - where.start for where in window.micro_slices(4)] == [4] * 8
    assert window.group_sizes(slice(4, 8)) == (4,)


def resolved(gpus: int = 0, **train: object) -> tuple[object, str]:
    """`train.batch_norm_rows` of a small image set, and why."""
    source = {"kind": "sklearn", "dataset": "digits"}
    spec = validate_spec({"version": 1, "data": {"source": source}, "train": train})
    gpu = GpuFacts(uuid="g", name="g", memory_total_bytes=1 << 34)
    host = HostFacts(cpu_cores=8, memory_bytes=1 << 34, gpus=(gpu,) * gpus)
    data = DataFacts(
        task="classification", layout="image", num_rows=1_797, num_rows_train=1_100, num_classes=10,
        item_shape=(1, 8, 8), source_digest="d",
    )  # fmt: skip
    run = resolve(spec, name="r", host=host, data=data)
    why = next((one.reason for one in run.reasons if one.path == "train.batch_norm_rows"), "")
    return run.spec.train.batch_norm_rows, why


def test_the_resolved_run_says_what_results_depend_on() -> None:
    for workers in (1, 2, 4):
        rows, why = resolved(workers=workers)
        assert rows == 16
        assert "with up to 4 workers and micro-batches of 16 rows or more results are the same" in why
    assert resolved(workers=8)[0] == 8
    assert "a worker's share" in resolved(workers=8)[1]
    rows, why = resolved(batch_size_per_worker=8, workers=1)
    assert rows == 8
    assert "the micro-batch has no more rows" in why
    assert resolved(batch_size_global=1024, workers=2)[0] == 128
    rows, why = resolved(gpus=2)
    assert rows is None
    assert "results depend on its size" in why
    assert resolved(batch_norm_rows=4, gpus=1)[0] == 4
