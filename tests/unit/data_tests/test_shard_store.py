"""Shards in a store: complete and verified or not at all, fetched once a node, published again only when changed."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import DataError, RequestError, ResourceError
from tests.unit.data_tests.making import prepare, run_spec
from trainers.data import shard_store
from trainers.data.shard_store import LIST, StoredShards, fetch_shards, publish_shards
from trainers.data.shards import open_prepared


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(tmp_path / "run", run_spec({"kind": "sklearn", "dataset": "iris"}))
    return tmp_path / "run"


class _Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []

    def log_message(self, *_: object) -> None:
        self.requests.append(self.path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which an HTTP server of this machine serves it."""
    (tmp_path / "remote").mkdir()
    _Handler.requests = []
    handler = functools.partial(_Handler, directory=str(tmp_path / "remote"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / "remote", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_node_reads_the_same_shards_over_http_and_fetches_them_once(
    prepared: Path, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, url = served
    digest = publish_shards(prepared, f"file://{remote}")
    monkeypatch.setattr("cluster.temporary.shared_base", lambda: tmp_path / "node")
    request = StoredShards.of(tmp_path / "not on this node", url, digest)
    sent = pickle.loads(pickle.dumps(request)).resolve()  # as Ray sends it to a worker
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(open_prepared, [sent] * 4))
    here = open_prepared(prepared)
    for there in found:
        assert isinstance(there.splits["train"].inputs["features"], np.memmap)
        for name, split in here.splits.items():
            assert np.array_equal(split.inputs["features"], there.splits[name].inputs["features"])
            assert np.array_equal(split.targets, there.splits[name].targets)
    gets = [path for path in _Handler.requests if path.endswith("train/targets.npy")]
    assert len(gets) <= 2  # a look at the size, and one copy for all four
    assert open_prepared(StoredShards.of(prepared, url, digest)).folder == prepared


def test_a_set_that_is_not_whole_is_refused_and_leaves_nothing(prepared: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    digest = publish_shards(prepared, f"file://{store}")
    place = next(store.iterdir())
    shard = place / "train" / "targets.npy"
    good = shard.read_bytes()
    for damage, words in (
        (lambda: shard.write_bytes(good[:-1]), "was changed or cut short"),
        (lambda: shard.write_bytes(good[:-1] + b"\x07"), "was changed or cut short"),
        (shard.unlink, "targets.npy is gone"),
        ((place / LIST).unlink, "never published whole"),
        (lambda: (place / LIST).write_text("{}"), "not the one that the prepare stage noted"),
    ):
        damage()
        with pytest.raises(DataError, match=words):
            fetch_shards(f"file://{store}", digest, tmp_path / "cache")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{digest[:16]}.lock"]


def test_publishing_stops_midway_without_a_set_and_goes_on_with_the_next_call(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, copied = f"file://{tmp_path / 'store'}", []
    system = shard_store.fsspec.filesystem("file")
    put = type(system).put_file

    def failing(self: object, source: str, target: str, **values: object) -> None:
        copied.append(target)
        if len(copied) == 3:
            raise OSError("the line is cut")
        put(self, source, target, **values)

    with monkeypatch.context() as patch:
        patch.setattr(type(system), "put_file", failing)
        with pytest.raises(ResourceError, match="the line is cut"):
            publish_shards(prepared, store)
    assert not list((tmp_path / "store").rglob(LIST))
    digest = publish_shards(prepared, store)
    copied.clear()
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "put_file", failing)
        assert publish_shards(prepared, store) == digest
    assert copied == []
    assert open_prepared(fetch_shards(store, digest, tmp_path / "cache")).task == "classification"


def test_the_prepare_stage_publishes_what_the_spec_says(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    spec = run_spec({"kind": "sklearn", "dataset": "iris"}, shards_url=store)
    facts = prepare(tmp_path / "run", spec).facts.to_json()
    assert facts["shards"]["store"] == store
    fetched = fetch_shards(**facts["shards"], cache=tmp_path / "cache")
    assert (fetched / "dataset.json").read_bytes() == (tmp_path / "run" / "dataset.json").read_bytes()
    other = prepare(tmp_path / "other", run_spec({"kind": "sklearn", "dataset": "wine"}, shards_url=store))
    assert other.facts.to_json()["shards"]["digest"] != facts["shards"]["digest"]
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_a_cache_that_another_user_owns_is_refused(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = publish_shards(prepared, str(tmp_path / "store"))
    monkeypatch.setattr("cluster.temporary.shared_base", lambda: tmp_path)
    monkeypatch.setattr("cluster.temporary.os.getuid", lambda: 4_000_000)
    with pytest.raises(RequestError, match="not a folder of this user's alone"):
        fetch_shards(str(tmp_path / "store"), digest)
