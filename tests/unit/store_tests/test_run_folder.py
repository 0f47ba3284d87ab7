"""What a run's folder gives back: what was written, and what earlier versions wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.spec.load import validate_spec
from cluster.spec.resolve import DataFacts, HostFacts, resolve
from cluster.store.run_folder import RunFolder

DATA = DataFacts(
    task="classification", layout="table", num_rows=100, num_rows_train=80, num_classes=2, source_digest="0" * 64
)


@pytest.mark.parametrize(
    ("recipes", "kept"), [(["int8_static", "sparse", "prune"], ("int8_static", "prune")), (["sparse"], None)]
)
def test_a_resolved_run_that_names_the_recipe_of_masks_is_read_without_it(
    tmp_path: Path, recipes: list[str], kept: tuple[str, ...] | None
) -> None:
    spec = validate_spec({"version": 1, "data": {"source": {"kind": "sklearn", "dataset": "iris"}}})
    run = RunFolder(tmp_path)
    run.write_resolved(resolve(spec, name="old", host=HostFacts(cpu_cores=1, memory_bytes=1 << 30), data=DATA))
    raw = yaml.safe_load(run.resolved_path.read_text(encoding="utf-8"))
    raw["spec"]["compress"] |= {"recipes": recipes, "sparsity": 0.5}
    run.resolved_path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    resolved = run.read_resolved()
    assert resolved is not None
    assert (resolved.spec.compress and resolved.spec.compress.recipes) == kept
