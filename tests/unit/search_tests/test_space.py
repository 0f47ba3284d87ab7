"""The space in Optuna's form, and the point that the spec itself is."""

from __future__ import annotations

from typing import Any

from cluster.spec.load import override_spec, validate_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.spec.run import RunSpec
from trainers.search.space import contains, current_point, distributions

SPACE = {
    "train.optimizer.learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-1},
    "train.batch_size_global": {"kind": "choice", "values": [16, 32]},
}


def spec_with(space: dict[str, Any], **search: Any) -> RunSpec:
    return validate_spec(
        {
            "version": 1,
            "data": {"source": {"kind": "sklearn", "dataset": "digits"}},
            "model": {"family": "mlp", "hidden": [16]},
            "train": {"epochs": 6, "batch_size_global": 64},
            "search": {"space": space, **search},
        }
    )


def test_the_current_point_holds_the_values_as_written() -> None:
    spec = spec_with({**SPACE, "model.hidden": {"kind": "choice", "values": [[8], [16]]}})
    assert spec.search is not None
    point = current_point(spec, spec.search)
    assert point == {"train.optimizer.learning_rate": 3e-3, "train.batch_size_global": 64, "model.hidden": [16]}
    space = distributions(spec.search)
    assert not contains(space["train.batch_size_global"], 64)
    assert contains(space["model.hidden"], [16])


def test_a_micro_batch_that_was_auto_follows_the_batch_that_a_search_found() -> None:
    """Else a search from 64 to 512 would train with eight times the accumulation that the memory asks for."""
    host = HostFacts(cpu_cores=2, memory_bytes=8 << 30)
    data = DataFacts(task="classification", layout="array", num_rows=30_000, num_rows_train=20_000, source_digest="x")
    auto = resolve(spec_with(SPACE), name="x", host=host, data=data)
    assert auto.batch.batch_size_per_worker == 32
    larger = auto.with_values({"train.batch_size_global": 256})
    assert (larger.batch.batch_size_per_worker, larger.batch.accumulation_steps) == (128, 1)
    fixed = resolve(override_spec(spec_with(SPACE), {"train.batch_size_per_worker": 8}), name="x", host=host, data=data)
    assert fixed.with_values({"train.batch_size_global": 256}).batch.accumulation_steps == 16
