"""`manta compress`: a bundle, or a bare ONNX file with rows; what is refused; the last good bundle stays whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from cluster.atomic import hash_tree
from cluster.bundle.files import TRANSFORMS, finish_bundle, open_bundle, read_manifest
from cluster.spec.compress import CompressSpec
from cluster.telemetry.events import ListSink
from tests.bundles import linear_graph, make_bundle, mlp_graph
from trainers.compress.__main__ import main
from trainers.compress.command import compress_source
from trainers.export.session import open_session, run_batches

WIDTH = 64


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bare ONNX file whose weights do not fit a core's cache, and 1,200 labeled rows of it."""
    folder = tmp_path_factory.mktemp("bare")
    onnx.save(mlp_graph(WIDTH, 1024, 5, layers=2), folder / "mlp.onnx")
    x = np.random.default_rng(0).standard_normal((4000, WIDTH)).astype(np.float32)
    logits = run_batches(open_session(folder / "mlp.onnx"), {"x": x})["logits"]
    best = np.sort(logits, axis=1)
    clear = np.argsort(best[:, -1] - best[:, -2])[-1200:]  # real labels are not coin tosses
    np.savez(folder / "rows.npz", x=x[clear], targets=logits[clear].argmax(1))
    return folder / "mlp.onnx", folder / "rows.npz"


@pytest.fixture(scope="session")
def table_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes rows of age and job: one number, and a job as one of two."""
    blocks = [
        {"columns": ["age"], "steps": [{"op": "impute", "values": [30.0]}], "features": ["age"]},
        {"columns": ["job"], "steps": [{"op": "one_hot", "categories": ["clerk", "smith"]}], "features": ["a", "b"]},
    ]
    transforms = {
        "format": "manta.transforms", "format_version": 1, "ignored": ["sold"],
        "columns": [{"name": "age", "kind": "number"}, {"name": "job", "kind": "text"}],
        "outputs": [{"name": "x", "blocks": blocks}],
    }  # fmt: skip
    folder = make_bundle(tmp_path_factory.mktemp("table") / "bundle", item_shape=(3,), num_outputs=2)
    (folder / TRANSFORMS).write_text(json.dumps(transforms), encoding="utf-8")
    finish_bundle(folder, read_manifest(folder).model_copy(update={"classes": ("no", "yes")}))
    return folder


def run_main(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_bare_onnx_file_and_rows_become_a_smaller_bundle(bare: Any, tmp_path: Path, capsys: Any) -> None:
    graph, rows = bare
    out = tmp_path / "out"
    code, facts = run_main(
        capsys, graph, "--data", rows, "--out", out, "--max-drop", 0.02, "--recipes", "int8_dynamic,int8_static",
        "--minimize", "size",
    )  # fmt: skip
    assert code == 0
    assert facts["chosen"] != "fp32"
    bundle = open_bundle(out)
    assert bundle.manifest.default_variant == facts["chosen"]
    chosen = next(one for one in facts["candidates"] if one["name"] == facts["chosen"])
    assert chosen["verdict"] == "pass"
    assert bundle.path(bundle.variant().file).stat().st_size < graph.stat().st_size / 3
    sample = bundle.sample()
    answers = run_batches(open_session(bundle.path(bundle.variant().file)), {"x": sample["inputs/x"]})
    assert np.array_equal(answers["logits"], sample[f"outputs/{facts['chosen']}/logits"])
    assert bundle.manifest.classes == ("0", "1", "2", "3", "4")


def test_a_bundle_is_compressed_with_the_rows_of_its_run_and_left_as_it_was(
    digits_run: Path, tmp_path: Path, capsys: Any
) -> None:
    before = hash_tree(digits_run / "bundle")
    out = tmp_path / "out"
    code, facts = run_main(
        capsys, digits_run / "bundle", "--out", out, "--max-drop", 0.005, "--target", "cpu",
        "--recipes", "int8_static,int8_weight_only",
    )  # fmt: skip
    assert code == 0
    assert hash_tree(digits_run / "bundle") == before
    assert [one["recipe"] for one in facts["candidates"]] == ["int8_static", "int8_weight_only"]
    manifest = open_bundle(out).manifest
    assert manifest.name == "digits"
    assert manifest.model["family"] == "cnn"
    assert {one.name for one in manifest.variants} == {
        "fp32",
        *(c["name"] for c in facts["candidates"] if c["accepted"]),
    }
    assert "evidence/compress.json" in manifest.files


def test_trials_of_the_command_run_side_by_side_on_a_running_ray(ray_local: str, bare: Any, tmp_path: Path) -> None:
    graph, rows = bare
    spec = CompressSpec.model_validate({"recipes": ("int8_dynamic", "int8_weight_only"), "concurrency": 2})
    facts = compress_source(graph, rows, tmp_path / "out", spec, ListSink())
    assert [one["verdict"] for one in facts["candidates"]] == ["pass", "pass"]
    assert open_bundle(tmp_path / "out").manifest.variants[0].name == "fp32"


@pytest.mark.slow
def test_the_installed_command_runs_its_trials_on_a_ray_of_its_own(bare: Any, tmp_path: Path) -> None:
    graph, rows = bare
    command = [
        sys.executable,
        "-c",
        "from cluster.cli import main; main()",
        "compress",
        str(graph),
        "--data",
        str(rows),
    ]
    command += ["--out", str(tmp_path / "out"), "--max-drop", "0.02", "--workers", "2", "--minimize", "size", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chosen"].startswith("int8_")
    open_bundle(tmp_path / "out")


def save_table(path: Path, bare: Any, count: int = 400) -> Path:
    """The rows of `bare` as a CSV file, the answers in a column in the middle."""
    with np.load(bare[1]) as file:
        x, targets = file["x"][-count:], file["targets"][-count:]
    names = [*(f"x{i}" for i in range(3)), "answer", *(f"x{i}" for i in range(3, WIDTH))]
    lines = [
        ",".join([*map(repr, row[:3].tolist()), str(t), *map(repr, row[3:].tolist())])
        for row, t in zip(x, targets, strict=True)
    ]
    path.write_text("\n".join([",".join(names), *lines]) + "\n", encoding="utf-8")
    return path


def test_a_table_is_the_input_of_a_bare_graph_column_by_column(bare: Any, tmp_path: Path, capsys: Any) -> None:
    table, rows = save_table(tmp_path / "rows.csv", bare), tmp_path / "rows.npz"
    with np.load(bare[1]) as file:
        np.savez(rows, x=file["x"][-400:], targets=file["targets"][-400:].astype(np.float64))  # as pandas has them
    found = {}
    for data, more in ((table, ("--target-column", "answer")), (rows, ())):
        code, facts = run_main(
            capsys, bare[0], "--data", data, *more, "--out", tmp_path / "out", "--recipes", "int8_dynamic"
        )
        assert code == 0
        (candidate,) = facts["candidates"]
        found[data.suffix] = [candidate[name] for name in ("metric", "n", "accuracy", "baseline_accuracy")]
    assert found[".csv"] == found[".npz"] == ["accuracy", 320, found[".npz"][2], 1.0]
    code, answer = run_main(capsys, bare[0], "--data", table, "--out", tmp_path / "out")
    assert code == 2
    assert "--target-column" in answer["error"]["message"]
    code, answer = run_main(capsys, bare[0], "--data", table, "--target-column", "x0", "--out", tmp_path / "out")
    assert code == 2
    assert "a class is a number from 0 to 4" in answer["error"]["message"]


def test_raw_rows_go_through_the_transforms_of_the_bundle_and_labels_to_its_classes(
    table_bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    rows = ["age,job,sold", *(f"{20 + i % 40},{'clerk' if i % 2 else 'smith'},{'yes' if i % 3 else 'no'}"
                              for i in range(120))]  # fmt: skip
    (tmp_path / "rows.csv").write_text("\n".join(rows), encoding="utf-8")
    arguments = (table_bundle, "--out", tmp_path / "out", "--recipes", "int8_dynamic", "--target-column", "sold")
    code, facts = run_main(capsys, *arguments, "--data", tmp_path / "rows.csv")
    assert code == 0, facts
    assert facts["candidates"][0]["n"] == 96
    sample = open_bundle(tmp_path / "out").sample()
    assert set(sample["inputs/x"][:, 1:].ravel()) == {0.0, 1.0}  # one-hot, as the transforms say
    (tmp_path / "rows.csv").write_text("\n".join(rows).replace("yes", "maybe"), encoding="utf-8")
    code, answer = run_main(capsys, *arguments, "--data", tmp_path / "rows.csv")
    assert code == 2
    assert "the bundle's classes are no, yes" in answer["error"]["message"]


def test_a_command_that_was_killed_goes_on_from_its_finished_trials(
    bare: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    arguments = (bare[0], "--data", bare[1], "--out", out, "--recipes", "int8_dynamic,int8_weight_only")

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainers.compress.command._write", die)
        assert main([*map(str, arguments)]) == 1
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.trials" / "trials").iterdir()}
    assert len(made) == 2
    with monkeypatch.context() as patch:
        patch.setattr("trainers.compress.ray_tasks.run_graph_recipe", die)  # nothing is left to be tried
        assert run_main(capsys, *arguments)[0] == 0
    open_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_recipe_that_the_quantizer_cannot_take_stops_alone(bare: Any, tmp_path: Path, capsys: Any) -> None:
    """Opset 11 has no scale for each channel: onnx's own error, which is none of ours."""
    model = onnx.load(str(bare[0]))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 11))
    onnx.save(model, tmp_path / "old.onnx")
    code, facts = run_main(
        capsys, tmp_path / "old.onnx", "--data", bare[1], "--out", tmp_path / "out",
        "--recipes", "int8_weight_only,int8_dynamic",
    )  # fmt: skip
    assert code == 0
    dynamic, weights = facts["candidates"]
    assert weights["verdict"] == "stopped"
    assert "the recipe cannot take this graph: ValidationError" in weights["reason"]
    assert dynamic["verdict"] == "pass"


# bad input ----------------------------------------------------------------------------------------------------


def save_rows(path: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((200, WIDTH)).astype(np.float32), "targets": rng.integers(0, 5, 200), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


BAD_ROWS = {
    "no target": ({"targets": None}, "Add targets"),
    "no input": ({"x": None, "y": np.zeros((200, WIDTH))}, "Add x"),
    "one class": ({"targets": np.zeros(200, np.int64)}, "of more than one class"),
    "unequal rows": ({"targets": np.arange(150) % 5}, "one target for each row"),
    "wrong shape": ({"x": np.zeros((200, WIDTH + 1), np.float32)}, "takes x tensor(float)"),
    "wrong type": ({"x": np.zeros((200, WIDTH), np.float64)}, "takes x tensor(float)"),
    "one row": ({"x": np.zeros((1, WIDTH), np.float32), "targets": np.zeros(1, np.int64)}, "calibration and gate"),
    "negative classes": ({"targets": np.arange(200) % 5 - 3}, "class"),
    "classes beyond the outputs": ({"targets": np.arange(200) % 9}, "class"),
    "fractions": ({"targets": np.arange(200) / 7}, "a class is a number from 0 to 4"),
    "no numbers": ({"targets": np.array(["cat", "dog"] * 100)}, "'cat'"),
    "missing answers": ({"targets": np.array([0.0, np.nan] * 100)}, "100 of 200 targets are NaN"),
    "one column a class": ({"targets": np.eye(5)[np.arange(200) % 5]}, "argmax"),
    "no rows": ({"x": np.zeros((0, WIDTH), np.float32), "targets": np.zeros(0, np.int64)}, "0 rows"),
    "no axis": ({"x": np.float32(1), "targets": np.int64(1)}, "targets have the shape []"),
    "texts as input": ({"x": np.full((200, WIDTH), "a")}, "'x' has the type <U1"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_do_not_fit_are_refused_and_no_bundle_is_left(
    bare: Any, tmp_path: Path, capsys: Any, case: str
) -> None:
    changes, words = BAD_ROWS[case]
    data = save_rows(tmp_path / "rows.npz", **changes)
    code, answer = run_main(capsys, bare[0], "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert words in answer["error"]["message"]
    assert not (tmp_path / "out").exists()


BAD_FILES = {
    "text": b"x,targets\n1,2\n",
    "empty": b"",
    "cut short": None,
    "one array": np.lib.format.magic(1, 0),
    "a missing file": b"missing",
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_archive_of_arrays_is_one_sentence(bare: Any, tmp_path: Path, capsys: Any, case: str) -> None:
    data = tmp_path / "rows.npz"
    data.write_bytes(BAD_FILES[case] or bare[1].read_bytes()[:5000])
    if case == "one array":
        with data.open("wb") as file:
            np.save(file, np.zeros(3))
    if case == "a missing file":
        data.unlink()
    if case == "empty":
        data.write_bytes(b"")
    code, answer = run_main(capsys, bare[0], "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert answer["error"]["message"].startswith(f"Cannot read the rows {data}: ")
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_is_no_bundle_and_the_source_itself_are_never_replaced(
    bare: Any, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    source = make_bundle(tmp_path / "bundle")
    for given, out in ((bare[0], tmp_path / "mine"), (bare[0], bare[0].parent), (source, source), (source, tmp_path)):
        before = hash_tree(out)
        code, answer = run_main(capsys, given, "--data", bare[1], "--out", out)
        assert code == 2
        assert "Give another --out" in answer["error"]["message"]
        assert hash_tree(out) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-drop", "0"], "cannot be proved by any number of samples"),
        (["--recipes", "int9"], "Recipes are"),
        (["--recipes", "prune"], "need the run's spec"),
        (["--threads", "0"], "greater than 0"),
        (["--target", "tpu"], "target.device is 'tpu'"),
        (["--minimize", "money"], "'latency', 'size' or 'cost'"),
        (["--on-inconclusive", "hope"], "'keep_baseline' or 'accept_point_estimate'"),
    ],
)
def test_options_that_cannot_be_met_are_refused(bare: Any, capsys: Any, options: list[str], words: str) -> None:
    code, answer = run_main(capsys, bare[0], "--data", bare[1], *options)
    assert code == 2
    assert words in answer["error"]["message"]


def test_a_bundle_with_right_hashes_whose_graph_reads_outside_is_refused(tmp_path: Path, capsys: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    model = onnx.load(str(bundle / "model.onnx"))
    tensor = model.graph.initializer[0]
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    finish_bundle(bundle, read_manifest(bundle))
    open_bundle(bundle)  # whoever made it made the hashes too
    code, answer = run_main(capsys, bundle, "--data", save_rows(tmp_path / "rows.npz"), "--out", tmp_path / "out")
    assert code == 2
    assert "external data must lie beside the file" in answer["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_a_bundle_outside_its_run_needs_rows(tmp_path: Path, capsys: Any) -> None:
    code, answer = run_main(capsys, make_bundle(tmp_path / "alone"))
    assert code == 2
    assert "Give --data" in answer["error"]["message"]


def test_too_few_gate_rows_are_inconclusive_with_the_number_that_would_decide(
    bare: Any, tmp_path: Path, capsys: Any
) -> None:
    with np.load(bare[1]) as file:
        np.savez(tmp_path / "few.npz", x=file["x"][-60:], targets=file["targets"][-60:])
    code, facts = run_main(
        capsys, bare[0], "--data", tmp_path / "few.npz", "--out", tmp_path / "out", "--recipes", "int8_dynamic"
    )
    assert code == 0
    (candidate,) = facts["candidates"]
    assert candidate["verdict"] == "inconclusive"
    assert candidate["samples_needed"] > candidate["n"]
    assert f"{candidate['samples_needed']:,} rows would decide" in candidate["reason"]
    assert facts["chosen"] == "fp32"  # the command keeps the baseline unless told otherwise
    assert open_bundle(tmp_path / "out").manifest.default_variant == "fp32"


def overflowing_graph(path: Path) -> Path:
    """Finite for the small rows of calibration, infinite minus infinite for large ones."""
    model = linear_graph((8,), 3)
    model.graph.node[1].output[0] = "z"
    for node in (
        helper.make_node("Exp", ["z"], ["e"]),
        helper.make_node("Div", ["e", "e"], ["one"]),
        helper.make_node("Mul", ["one", "z"], ["logits"]),
    ):
        model.graph.node.append(node)
    onnx.save(model, path)
    return path


def test_outputs_that_are_not_numbers_reject_a_candidate_or_the_source(tmp_path: Path, capsys: Any) -> None:
    graph = overflowing_graph(tmp_path / "nan.onnx")
    x = np.full((200, 8), 1000.0, np.float32) * np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, targets=np.arange(200) % 3)
    code, answer = run_main(capsys, graph, "--data", tmp_path / "rows.npz", "--out", tmp_path / "out")
    assert code == 2
    assert "NaN" in answer["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_the_last_good_bundle_stays_whole_when_the_next_attempt_fails(
    bare: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    arguments = (bare[0], "--data", bare[1], "--out", out, "--recipes", "int8_dynamic")
    assert run_main(capsys, *arguments)[0] == 0
    before = hash_tree(out)
    bad = save_rows(tmp_path / "bad.npz", targets=np.zeros(200, np.int64))
    assert run_main(capsys, bare[0], "--data", bad, "--out", out)[0] == 2
    assert hash_tree(out) == before

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.compress.command.write_sample", fail)
    code, answer = run_main(capsys, *arguments)
    assert code == 3
    assert "what was there before is whole" in answer["error"]["message"]
    assert hash_tree(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]
    open_bundle(out)
