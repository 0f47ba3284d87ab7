"""What a deploy to a Ray that serves already cannot change is said."""

from __future__ import annotations

from typing import Any

import pytest

from serve.deployments.listening import not_applied

NOW = {"host": "0.0.0.0", "port": 8000, "grpc_port": None}


@pytest.mark.parametrize(
    ("wanted", "running", "words"),
    [
        ({}, NOW, []),
        ({"port": 9000}, {}, []),
        ({"host": "0.0.0.0", "port": 8000}, NOW, []),
        ({"port": 0}, NOW, []),
        ({"port": 9000, "host": None}, NOW, ["port 9000", "serves already with port 8000", "serve shutdown"]),
        ({"host": "127.0.0.1", "grpc_port": 0}, NOW, ["host 127.0.0.1", "grpc_port 0", "grpc_port shut"]),
        ({"grpc_port": 0}, NOW | {"grpc_port": 9000}, []),
    ],
)
def test_only_what_differs_is_said_with_what_would_apply_it(
    wanted: dict[str, Any], running: dict[str, Any], words: list[str]
) -> None:
    told = not_applied(wanted, running)
    assert bool(told) == bool(words)
    assert all(word in told for word in words)
