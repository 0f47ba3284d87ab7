"""The endpoint verbs as a user types them: one terminal serves, another one asks, rolls on and takes away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.client import EndpointClient
from tests.bundles import make_bundle

DEADLINE_S = 150
TOKEN = "shop-token-0123456789"


def manta(place: Path, *words: str, token: str = "") -> subprocess.Popen[str]:
    """`manta …` with its own temporary folder, so that no other endpoint of this user is seen."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MANTA_TOKEN")}
    if token:
        environment["MANTA_TOKEN"] = token
    return subprocess.Popen(
        [sys.executable, "-c", "from cluster.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "TMPDIR": str(place)},
    )


def run(place: Path, *words: str, code: int = 0, token: str = TOKEN) -> Any:
    process = manta(place, *words, "--json", token=token)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err
    assert not [word for word in ("INFO", "Warning", "Traceback") if word in err], err
    return json.loads(out)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[subprocess.Popen[str]]:
    """`manta deploy` without a cluster: it serves until SIGTERM or Ctrl-C."""
    bundle = make_bundle(place / "first", name="shop", item_shape=(4,), num_outputs=3, seed=1)
    (place / "tokens").write_text(f"{TOKEN}\n")
    process = manta(
        place, "deploy", str(bundle), "--name", "shop", "--port", "0", "--token-file", str(place / "tokens")
    )
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not list(place.glob("manta-endpoints-*/shop.json")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow  # it starts a Ray of its own and a dozen commands
def test_another_terminal_lists_asks_rolls_on_and_back_and_takes_away(
    served: subprocess.Popen[str], place: Path
) -> None:
    (entry,) = run(place, "endpoints")["endpoints"]
    assert (entry["name"], entry["state"]) == ("shop", "READY")
    (place / "rows.json").write_text(json.dumps(np.eye(4).tolist()))
    first = run(place, "predict", "shop", str(place / "rows.json"))
    assert len(first["predictions"]) == 4
    rows = str(place / "rows.json")
    refused = run(place, "predict", "shop", rows, code=1, token="")["error"]
    assert ("401" in refused["found"], "MANTA_TOKEN" in refused["remedy"]) == (True, True)
    by_file = run(place, "predict", "shop", rows, "--token-file", str(place / "tokens"), token="")
    assert by_file["predictions"] == first["predictions"]
    assert run(place, "endpoints", token="another-token-0123456789")["endpoints"][0]["state"] == "NO TOKEN"
    second = make_bundle(place / "second", name="shop", item_shape=(4,), num_outputs=3, seed=2)
    values = ("--set", "batching.max_rows=16", "--set", "queue.max_wait_ms=null", "--set", "unseen=refuse")
    found = run(place, "deploy", str(second), "--name", "shop", "--versions", "all", *values)
    assert found["version"] == "2"
    with EndpointClient(found["url"], "shop", token=TOKEN) as client:
        sizes = [client.get(f"/v2/models/shop/versions/{version}/config")["max_batch_size"] for version in "12"]
    assert sizes == [16, 16], "both versions are loaded with what the endpoint has now"
    old = run(place, "predict", "shop", rows, "--version", "1")
    assert (old["version"], old["predictions"]) == ("1", first["predictions"])
    after = run(place, "predict", "shop", str(place / "rows.json"))
    assert (after["version"], after["predictions"] != first["predictions"]) == ("2", True)
    assert "401" in run(place, "rollback", "shop", code=1, token="another-token-0123456789")["error"]["found"]
    assert run(place, "rollback", "shop")["version"] == "1"
    assert run(place, "predict", "shop", str(place / "rows.json"))["predictions"] == first["predictions"]
    assert run(place, "undeploy", "shop")["ok"]
    assert served.wait(60) == 0, "a private Ray ends by itself when its last endpoint is gone"
    assert served.stderr is not None
    assert "The last endpoint is gone." in served.stderr.read()
    assert run(place, "endpoints")["endpoints"] == []
    assert run(place, "predict", "shop", str(place / "rows.json"), code=2)["error"]["code"] == "REQUEST"


def test_wrong_words_are_told_at_once(place: Path) -> None:
    for words in (
        ("deploy", str(place / "nowhere")),
        ("deploy", str(place), "--replicas", "4..1"),
        ("predict", "nobody", "rows.csv", "--token-file", str(place / "nowhere")),
        ("rollback", "nobody"),
        ("undeploy", "nobody"),
    ):
        assert run(place, *words, code=2)["ok"] is False
