"""What `manta run` does before its driver starts: the run's name and folder; and after one that said nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.atomic import write_json
from cluster.cli.app import call
from cluster.cli.run_process import Claim, prepare_folder
from cluster.errors import RequestError
from cluster.pipeline.reuse import reusable
from cluster.pipeline.stages import STAGES
from cluster.spec.load import load_spec
from cluster.store.run_folder import FORGOTTEN, TRAINING, RunFolder, find_run
from tests.bundles import make_bundle

SPEC = "version: 1\ndata: {source: {kind: csv, path: größe.csv}, target: größe}\n"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "my spec (2).yaml"
    path.write_text(SPEC, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "two words", "x" * 64, "-x", "naïve", "x\n"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_name_cannot_lead_out_of_the_runs_folder(spec: Path, name: str, fresh: bool) -> None:
    runs = spec.parent / "runs"
    (spec.parent / "x").mkdir()
    with pytest.raises(RequestError, match="Cannot name the run"):
        prepare_folder(spec, [], name=name, runs_dir=runs, claim=Claim(fresh=fresh))
    assert (spec.parent / "x").is_dir()
    assert not runs.exists()


def test_a_file_with_any_name_gives_a_run_a_plain_one(spec: Path) -> None:
    folder = prepare_folder(spec, [], name=None, runs_dir=spec.parent / "runs")
    assert folder.name == "my-spec-2"
    written = folder.path / "spec.yaml"
    assert load_spec(written) == load_spec(spec)
    assert "größe" in written.read_text(encoding="utf-8"), "the run's spec is for people too"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(spec: Path, fresh: bool) -> None:
    other = spec.parent / "photos"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"x")
    with pytest.raises(RequestError, match="is no run's folder"):
        prepare_folder(spec, [], name="photos", runs_dir=spec.parent, claim=Claim(fresh=fresh))
    assert [path.name for path in other.iterdir()] == ["a.jpg"]


def test_fresh_forgets_a_run(spec: Path) -> None:
    runs = spec.parent / "runs"
    first = prepare_folder(spec, [], name="a", runs_dir=runs)
    (first.path / "events.jsonl").write_text("")
    (first.checkpoints / "ab12" / "e00001-w00000000").mkdir(parents=True)
    (first.checkpoints / "ab12" / TRAINING).write_text("{}")
    (first.checkpoints / "other").mkdir()
    for _ in range(2):
        again = prepare_folder(spec, [], name="a", runs_dir=runs, claim=Claim(fresh=True))
        assert not again.events.exists()
        assert [path.name for path in runs.iterdir()] == ["a"]
        assert [path.name for path in again.checkpoints.iterdir()] == ["ab12"]
        kept = {path.name for path in (again.checkpoints / "ab12").iterdir()}
        assert kept == {"e00001-w00000000", TRAINING, FORGOTTEN}, "until a new training has an epoch"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_that_was_submitted_belongs_to_who_submitted_it(spec: Path, fresh: bool) -> None:
    where = {"name": "digits", "runs_dir": spec.parent / "runs"}
    folder = prepare_folder(spec, [], **where, claim=Claim(owner="ana@one"))
    prepare_folder(spec, ["train.epochs=3"], **where, claim=Claim(owner="ana@one"))
    was = (folder.path / "spec.yaml").read_bytes()
    with pytest.raises(RequestError, match=r"it is ana@one's; you are bo@two.*MANTA_OWNER=ana@one"):
        prepare_folder(spec, [], **where, claim=Claim(fresh=fresh, owner="bo@two"))
    assert (folder.path / "spec.yaml").read_bytes() == was


def test_a_spec_may_come_through_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, SPEC.encode())
    os.close(writer)
    folder = prepare_folder(Path(f"/dev/fd/{reader}"), [], name="p", runs_dir=tmp_path)
    os.close(reader)
    assert load_spec(folder.path / "spec.yaml").data.target == "größe"


@pytest.mark.parametrize("name", ["", "x" * 300, "a\x00b", "none"])
def test_a_run_that_is_not_there_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="no such run"):
        find_run(tmp_path, name)


def test_a_damaged_record_or_state_counts_as_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "a")
    (run.stage("prepare")).mkdir(parents=True)
    (run.path / "spec.yaml").write_text(SPEC)
    (run.stage("prepare") / "record.json").write_bytes(b'{"stage": "prep\xff')
    run.state.write_bytes(b"\xff[]")
    assert reusable(STAGES[1], run, "digest") == (None, "its record cannot be read")
    assert call(["show", "a", "--runs-dir", str(tmp_path), "--json"]) == 0
    write_json(run.state, ["not", "a", "state"])
    assert call(["runs", "--runs-dir", str(tmp_path)]) == 0
    assert "a" in capsys.readouterr().out


def test_brackets_in_a_headline_are_text_and_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "a")
    run.path.mkdir()
    (run.path / "spec.yaml").write_text(SPEC)
    message = "Cannot use column [price]: it has [/b] and [red]"
    write_json(run.state, {"state": "failed", "error": {"message": message}})
    assert call(["show", "a", "--runs-dir", str(tmp_path)]) == 0
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_a_bundle_is_named_by_its_folder_or_by_its_run(tmp_path: Path, verb: str) -> None:
    make_bundle(tmp_path / "run" / "bundle")
    assert call(["bundle", verb, str(tmp_path / "run")]) == 0
    assert call(["bundle", verb, str(tmp_path / "run" / "bundle")]) == 0
    assert call(["bundle", verb, str(tmp_path)]) == 2
