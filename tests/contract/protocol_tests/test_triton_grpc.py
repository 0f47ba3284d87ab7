"""The unmodified tritonclient.grpc is the judge of the gRPC door. In another process: its messages have our names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import make_echo_bundle
from tests.contract.protocol_tests.conftest import server_process
from tests.triton import ADMIN_TOKEN, GRPC_JUDGE, admin_token_file, judge


@pytest.fixture(scope="module")
def grpc_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("echo-grpc")
    bundle = make_echo_bundle(folder / "bundle")
    tokens = ("--admin-token-file", str(admin_token_file(folder)))
    with server_process(bundle, "--grpc-port", "0", *tokens, grpc=True) as address:
        yield address


@pytest.fixture(scope="module")
def seen(triton_python: Path, grpc_address: str) -> dict[str, Any]:
    return judge(triton_python, GRPC_JUDGE, grpc_address, "echo", ADMIN_TOKEN)


def test_health_and_readiness(seen: dict[str, Any]) -> None:
    names = ("live", "ready", "model_ready", "other_ready", "ready_after_unload", "ready_after_load")
    assert [seen[name] for name in names] == [True, True, True, False, False, True]
    assert seen["health"] == [0x08, 1]  # field 1, SERVING


def test_every_datatype_comes_back(seen: dict[str, Any]) -> None:
    assert [datatype for datatype, ok in seen["echo"].items() if not ok] == []
    assert (seen["id"], seen["selected"]) == ("7", ["out_int8"])


def test_a_stream_is_answered_in_order_and_goes_on_after_an_error(seen: dict[str, Any]) -> None:
    assert_stream(seen)


def assert_stream(seen: dict[str, Any]) -> None:
    answers = seen["stream"]
    assert [identity for identity, _ in answers] == [None if index == 7 else str(index) for index in range(40)]
    assert [index for index, (_, error) in enumerate(answers) if error] == [7]
    assert "unknown model" in answers[7][1]


def test_metadata_configuration_and_statistics(seen: dict[str, Any]) -> None:
    assert "binary_tensor_data" in seen["server"]["extensions"]
    assert seen["metadata"]["versions"] == ["1"]
    assert seen["config"]["max_batch_size"] == 64
    assert {tensor["name"] for tensor in seen["config"]["input"]} == {t["name"] for t in seen["metadata"]["inputs"]}
    assert seen["index"] == [{"name": "echo", "version": "1", "state": "READY"}]
    assert seen["stats"][0]["inference_count"] == "3", "the stream comes after"


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("unknown model", "StatusCode.NOT_FOUND", "unknown model"),
        ("unknown version", "StatusCode.NOT_FOUND", "unknown version"),
        ("missing inputs", "StatusCode.INVALID_ARGUMENT", "is missing"),
        ("unknown output", "StatusCode.INVALID_ARGUMENT", "is unknown"),
        ("a sequence", "StatusCode.UNIMPLEMENTED", "no state"),
        ("unload without a token", "StatusCode.UNAUTHENTICATED", "no valid token"),
        ("shared memory", "StatusCode.UNIMPLEMENTED", ""),
    ],
)
def test_errors_have_the_protocols_codes(seen: dict[str, Any], case: str, code: str, words: str) -> None:
    found = seen["errors"][case]
    assert found[0] == code
    assert words in found[1]
