"""The unmodified tritonclient.http is the judge of the REST door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.triton import ADMIN_TOKEN, HTTP_JUDGE, judge

PHASES = ("success", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


@pytest.fixture(scope="module")
def seen(triton_python: Path, echo_server: str) -> dict[str, Any]:
    return judge(triton_python, HTTP_JUDGE, echo_server, "echo", ADMIN_TOKEN)


def test_health_and_readiness(seen: dict[str, Any]) -> None:
    names = ("live", "ready", "model_ready", "version_ready", "other_ready", "ready_after_unload", "ready_after_load")
    assert [seen[name] for name in names] == [True, True, True, True, False, False, True]


def test_every_datatype_comes_back_in_every_form(seen: dict[str, Any]) -> None:
    wrong = [(form, datatype) for form, echo in seen["echo"].items() for datatype, ok in echo.items() if not ok]
    assert wrong == []
    assert len(seen["echo"]) == 9


def test_bfloat16_goes_in_as_float32(seen: dict[str, Any]) -> None:
    assert seen["bf16"] == [[1.5, -2.0]]


def test_selection_and_identity_of_a_request(seen: dict[str, Any]) -> None:
    assert (seen["selected"], seen["id"]) == (["out_int8"], "me")


def test_metadata_has_what_perf_analyzer_reads(seen: dict[str, Any]) -> None:
    """perf_analyzer dereferences these without looking (its triton_client_backend.cc and model_parser.cc)."""
    assert "binary_tensor_data" in seen["server"]["extensions"]
    config = seen["config"]
    names = {tensor["name"] for tensor in seen["metadata"]["inputs"]}
    assert {tensor["name"] for tensor in config["input"]} == names
    assert config["max_batch_size"] > 0
    assert all(tensor["shape"][0] == -1 for tensor in seen["metadata"]["inputs"])
    assert config["model_transaction_policy"]["decoupled"] is False
    assert config["response_cache"]["enable"] is False
    assert all("optional" in tensor and "is_shape_tensor" in tensor for tensor in config["input"])


def test_statistics_count_rows_and_calls(seen: dict[str, Any]) -> None:
    (entry,) = seen["stats"]["model_stats"]
    assert (entry["name"], entry["version"]) == ("echo", "1")
    # seven forms and two selections of three rows each, and one row in bfloat16
    assert entry["inference_count"] == 9 * 3 + 1
    assert 1 <= entry["execution_count"] <= 10
    for phase in PHASES:
        assert set(entry["inference_stats"][phase]) == {"count", "ns"}
    assert entry["inference_stats"]["success"]["count"] == 10
    assert sum(size["compute_infer"]["count"] for size in entry["batch_stats"]) == entry["execution_count"]
    assert seen["all_stats"] == ["echo"]


def test_repository_index_follows_load_and_unload(seen: dict[str, Any]) -> None:
    assert seen["index"] == [{"name": "echo", "version": "1", "state": "READY", "reason": ""}]
    assert seen["index_after_unload"][0]["state"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("case", "status", "words"),
    [
        ("unknown model", "404", "unknown model"),
        ("unknown version", "404", "unknown version"),
        ("version is no number", "400", "not a whole number"),
        ("missing inputs", "400", "is missing"),
        ("input twice", "400", "given twice"),
        ("unknown output", "400", "is unknown"),
        ("a sequence", "501", "no state"),
        ("shared memory", "501", "not served"),
        ("trace settings", "501", "not served"),
        ("log settings", "501", "not served"),
        ("load with a configuration", "501", "its bundle"),
        ("load of an unknown model", "404", "no such model"),
        ("unload without a token", "401", "no valid token"),
        ("unload of an unknown model", "404", "no such model"),
    ],
)
def test_errors_arrive_as_the_clients_own_exception(seen: dict[str, Any], case: str, status: str, words: str) -> None:
    found = seen["errors"][case]
    assert found[0] == status
    assert words in found[1]
