"""A shard that is gone when Ray Train opens it: the user sees its name, exit code 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import DataError
from tests.unit.loop_tests.rig import request_for, write_data
from trainers.launch.fit import launch_fit

pytestmark = pytest.mark.slow  # workers of its own; the loop alone is tested in unit/data_tests/test_shard_removed.py


def test_a_shard_that_is_gone_is_named_through_ray_and_not_tried_again(ray_local: str, tmp_path: Path) -> None:
    prepared = write_data(tmp_path / "data", 48, dtype="FP32")
    shard = prepared / "train" / "inputs.x.npy"
    shard.unlink()
    request = request_for(
        prepared,
        batch=12,
        micro=6,
        workers=2,
        checkpoints=tmp_path / "checkpoints",
        arguments={"double": False},
        epochs=2,
    )
    with pytest.raises(DataError, match="the shard is gone") as caught:
        launch_fit(request, events=tmp_path / "events.jsonl", folder=tmp_path / "out")
    assert str(shard) in caught.value.message
    assert caught.value.exit_code == 2
    assert not list((tmp_path / "out").glob("*"))
