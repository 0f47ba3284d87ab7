"""kill -9 at random moments, again and again, without Ray: whatever it hits, no byte of the result changes.

The same through Ray Train, with its controller and its driver, is in tests/integration/train_tests/test_kill.py.
"""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path
from typing import Any

from tests.unit.loop_tests.rig import HERE, request_for, train_to_files, write_data

KILLS = 5


def test_kill_9_at_random_moments_also_while_a_checkpoint_is_written_changes_no_byte(tmp_path: Path) -> None:
    """A checkpoint after every window: more than half of the time goes into writing them."""
    prepared = write_data(tmp_path / "data", 60, dtype="FP32")
    options: dict[str, Any] = {
        "batch": 12,
        "micro": 4,
        "factory": f"{HERE}:build_noisy",
        "epochs": 6,
        "ema": {"decay": 0.9},
        "checkpoint": {"every_updates": 1},
    }
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir(), out.mkdir()
    train_to_files(request_for(prepared, **options), str(whole))
    request = request_for(prepared, checkpoints=tmp_path / "ck", **options)
    context, moments, kills = multiprocessing.get_context("forkserver"), random.Random(11), 0
    context.set_forkserver_preload([HERE])
    while True:
        process = context.Process(target=train_to_files, args=(request, str(out)))
        before = num_events(out)
        process.start()
        while process.is_alive() and (kills >= KILLS or num_events(out) < before + 3):  # it has gone on a little
            process.join(0.01)
        process.join(moments.uniform(0.0, 0.05))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills == KILLS
    for name in ("weights.safetensors", "history.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def num_events(folder: Path) -> int:
    path = folder / "events.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
