"""A candidate's way: each step returns the next state, and the facts have the same keys wherever it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.compress_tests.test_decision import decided
from trainers.compress.candidate import Candidate


def test_each_step_returns_the_next_state_and_leaves_the_one_before() -> None:
    proposed = Candidate("int8_static", "int8_static", precision="int8", notes={"made_by": "prune"})
    made = proposed.made(Path("model.onnx"), macs=10, notes={"method": "MinMax"})
    assert (proposed.state, made.state, made.file) == ("proposed", "made", Path("model.onnx"))
    assert made.notes == {"made_by": "prune", "method": "MinMax"}
    assert made.measured(agreement=1.0).decided(False, "is not faster").state == "rejected"
    with pytest.raises(AssertionError, match="is proposed"):
        _ = proposed.file


def test_a_stopped_candidate_has_the_keys_of_a_measured_one() -> None:
    stopped = Candidate("fp16", "fp16", precision="fp16").stopped("NaN or infinite outputs", {"proxies": None})
    entry, accepted = stopped.to_dict(), decided("prune50", "prune", 5, 2.0).to_dict()
    assert list(entry) == list(accepted)
    assert (entry["verdict"], entry["accepted"], entry["reason"]) == ("stopped", False, "NaN or infinite outputs")
    assert (entry["n"], entry["macs"], entry["size_bytes"], entry["latency_ms_p50"]) == (0, None, None, None)
    assert (accepted["verdict"], accepted["accepted"]) == ("pass", True)
