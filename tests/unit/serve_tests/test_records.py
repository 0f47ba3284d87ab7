"""What is recorded of endpoints outside of Ray: one writer a revision, and bundles by content."""

from __future__ import annotations

import errno
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.atomic import sha256_file
from cluster.bundle.files import open_bundle
from cluster.bundle.manifest import MANIFEST
from cluster.errors import BundleError, EndpointError
from serve.config import EndpointConfig, VersionConfig
from serve.deployments.records import BUNDLES, UNUSED_S, RolloutRecords, by
from serve.rollout import Rollout, serve, stage
from tests.bundles import make_bundle

CLIENTS, CHANGES = 8, 5


def config_of(bundle: Path) -> EndpointConfig:
    version = VersionConfig(version="1", bundle=str(bundle), manifest_sha256=sha256_file(bundle / MANIFEST))
    return EndpointConfig(name="m", versions=(version,), default_version="1")


def test_no_change_of_many_clients_is_lost(tmp_path: Path) -> None:
    def client(number: int) -> None:
        records = RolloutRecords(tmp_path)
        for _ in range(CHANGES):
            records.change("m", add)

    def add(now: Rollout) -> Rollout:
        return stage(now, VersionConfig(version=now.next_number, bundle="/b", manifest_sha256="0"), by("a change"))

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    found = RolloutRecords(tmp_path).read("m")
    assert found.revision == CLIENTS * CHANGES
    assert [each.version for each in found.versions] == [str(number + 1) for number in range(CLIENTS * CHANGES)]
    assert found.changes[-1].by.reason == "a change"
    assert "@" in found.changes[-1].by.author
    assert not list((tmp_path / "m").glob(".*")), "no draft is left"


def test_what_a_transition_raises_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    records = RolloutRecords(tmp_path)
    records.change("m", lambda now: stage(now, VersionConfig(version="1", bundle="/b"), by()))
    with pytest.raises(ZeroDivisionError):
        records.change("m", lambda now: now.model_copy(update={"revision": 1 // 0}))
    assert records.change("m", lambda now: now)[1].revision == 1
    assert (records.names(), RolloutRecords(tmp_path / "none").names()) == (["m"], [])


def test_a_record_that_cannot_be_read_is_said_with_its_path_and_the_one_before_counts_without_it(
    tmp_path: Path,
) -> None:
    records = RolloutRecords(tmp_path)
    records.change("m", lambda now: stage(now, VersionConfig(version="1", bundle="/b"), by()))
    (tmp_path / "m" / "00000002.json").write_text("{}")
    with pytest.raises(EndpointError, match=re.escape(str(tmp_path / "m" / "00000002.json"))):
        records.read("m")
    (tmp_path / "m" / "00000002.json").unlink()
    assert records.read("m").revision == 1


def test_a_version_has_a_copy_of_its_own_that_its_folder_cannot_change(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", seed=1)
    records = RolloutRecords(tmp_path / "records")
    with ThreadPoolExecutor(4) as pool:  # several deploys of one bundle
        kept = list(pool.map(lambda _: records.keep_all(config_of(bundle)), range(4)))
    assert len({each.default.kept for each in kept}) == 1
    (own,) = (tmp_path / "records" / BUNDLES).iterdir()
    make_bundle(bundle, seed=2)  # the run is repeated
    assert kept[0].default.folder == own
    assert sha256_file(open_bundle(own).folder / MANIFEST) == kept[0].default.manifest_sha256
    shutil.rmtree(bundle)
    assert records.keep_all(kept[0]) == kept[0]


def test_a_changed_bundle_is_not_copied_and_an_old_version_that_is_gone_holds_nothing_up(tmp_path: Path) -> None:
    bundle, records = make_bundle(tmp_path / "bundle"), RolloutRecords(tmp_path / "records")
    config = config_of(bundle)
    (bundle / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        records.keep_all(config)
    assert list((tmp_path / "records" / BUNDLES).iterdir()) == []
    make_bundle(bundle, seed=2)
    with pytest.raises(BundleError, match="written anew"):
        records.keep_all(config)
    newer = config.with_version(str(bundle), manifest_sha256=sha256_file(bundle / MANIFEST))
    kept = records.keep_all(newer)
    assert [each.kept is not None for each in kept.versions] == [False, True]


def test_a_copy_goes_when_no_endpoint_has_it_and_no_deploy_can_be_at_work_on_it(tmp_path: Path) -> None:
    records = RolloutRecords(tmp_path / "records")
    used = records.keep_all(config_of(make_bundle(tmp_path / "used", seed=1)))
    records.change("m", lambda now: serve(stage(now, used.default, by()), used, by(), instead_of=None))
    unused = Path(str(records.keep_all(config_of(make_bundle(tmp_path / "unused", seed=2))).default.kept))
    records.remove_unused_bundles()
    assert unused.is_dir()
    for folder in unused.parent.iterdir():
        os.utime(folder, (0, folder.stat().st_mtime - 2 * UNUSED_S))
    records.remove_unused_bundles()
    assert [str(path) for path in unused.parent.iterdir()] == [used.default.kept]


def test_a_link_whose_answer_was_lost_is_a_change_and_a_file_system_without_links_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS may carry a link out, lose the answer, and find the name taken when it tries again."""
    records, link = RolloutRecords(tmp_path), os.link

    def lost(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", lost)
    change = records.change("m", lambda now: stage(now, VersionConfig(version="1", bundle="/b"), by()))
    assert [each.revision for each in change] == [0, 1]

    def none(source: Path, target: Path) -> None:
        raise OSError(errno.ENOTSUP, "not supported", str(source))

    monkeypatch.setattr(os, "link", none)
    with pytest.raises(EndpointError, match="no hard links"):
        records.change("m", lambda now: stage(now, VersionConfig(version="2", bundle="/b"), by()))
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["00000001.json"]


def test_records_of_other_heads_are_found_beside_these(tmp_path: Path) -> None:
    for head in ("10.0.0.1-6379", "10.0.0.2-6379"):
        RolloutRecords(tmp_path / head).change(
            "m", lambda now: stage(now, VersionConfig(version="1", bundle="/b"), by())
        )
    assert RolloutRecords(tmp_path / "10.0.0.1-6379").others() == ["10.0.0.2-6379"]
    assert RolloutRecords(tmp_path / "new").others() == ["10.0.0.1-6379", "10.0.0.2-6379"]
