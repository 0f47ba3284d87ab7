"""Image manifests and plain text files: the same rows as an image folder and a table, and their bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.bundle.transforms import load_transforms
from cluster.errors import DataError
from tests.unit.data_tests.making import check, data_spec, prepare, run_spec
from trainers.data.read.raw import ITEMS
from trainers.data.read.sources import read_source
from trainers.data.shards import open_prepared

SHARES = {"validation": 4, "calibration": 0, "gate": 0, "test": 4}
LABELS = ("cat", "dog")


def write_images(root: Path, count: int = 20) -> list[tuple[str, str]]:
    """Images in class folders, and (path, label) of each."""
    rows = []
    for index in range(count):
        label = LABELS[index % 2]
        (root / label).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (6, 5, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / label / f"{index}.png")
        rows.append((f"{label}/{index}.png", label))
    return rows


def write_manifest(path: Path, rows: list[tuple[str, str]]) -> dict[str, Any]:
    if path.suffix == ".jsonl":
        lines = [json.dumps({"path": name, "label": label}) for name, label in rows]
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(row) for row in (("path", "label"), *rows)]
    path.write_text("\n".join(lines) + "\n")
    return {"kind": "image_manifest", "path": str(path)}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_manifest_gives_the_rows_of_the_folder_in_its_own_order(suffix: str, tmp_path: Path) -> None:
    rows = write_images(tmp_path / "images")
    source = write_manifest(tmp_path / "images" / f"m{suffix}", rows)
    raw = read_source(data_spec({**source, "channels": 1}, target="label"))
    folder = read_source(data_spec({"kind": "image_folder", "path": str(tmp_path / "images"), "channels": 1}))
    assert raw.rows.target.tolist() == [label for _, label in rows]
    order = sorted(range(len(rows)), key=lambda index: Path(rows[index][0]))
    assert np.array_equal(raw.rows.values[ITEMS][order], folder.rows.values[ITEMS])
    assert (raw.white, raw.item_shape) == (255.0, (1, 6, 5))
    prepare(tmp_path / "run", run_spec({**source, "size": [4, 4]}, target="label", split=SHARES))
    data = open_prepared(tmp_path / "run")
    assert (data.classes, data.inputs[0].shape) == (LABELS, (-1, 3, 4, 4))


def manifest(rows: list[tuple[str, str]], **values: Any) -> Callable[[Path], dict[str, Any]]:
    def make(root: Path) -> dict[str, Any]:
        write_images(root)
        (root / "cut.png").write_bytes((root / "cat" / "0.png").read_bytes()[:60])
        (root / "empty.png").touch()
        return {**write_manifest(root / "m.csv", rows), **values}

    return make


def text(files: dict[str, bytes], **values: Any) -> Callable[[Path], dict[str, Any]]:
    def make(root: Path) -> dict[str, Any]:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return {"kind": "text_files", "path": str(root), **values}

    return make


GOOD = ("cat/0.png", "cat")
BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no manifest": (lambda root: {"kind": "image_manifest", "path": str(root / "m.csv")}, "there is no such file"),
    "another path column": (manifest([GOOD], image="file"), "it has no column 'file'"),
    "a missing image": (manifest([GOOD, ("cat/00.png", "cat")]), "data row 2 names"),
    "nearest image": (manifest([GOOD, ("cat/00.png", "cat")]), "Did you mean"),
    "a row without a label": (manifest([GOOD, ("dog/1.png", "")]), "data row 2 has no 'label' (1 rows)"),
    "a row without a path": (manifest([("", "cat"), GOOD]), "data row 1 has no 'path'"),
    "an image cut short": (manifest([GOOD, ("cut.png", "dog")]), "Cannot read"),
    "an empty image": (manifest([GOOD, ("empty.png", "dog")]), "the file is empty"),
    "a text as image": (manifest([GOOD, ("m.csv", "dog")]), "an image must be whole"),
    "a folder as image": (manifest([GOOD, ("cat", "dog")]), "it is a directory"),
    "no folder of texts": (
        lambda root: {"kind": "text_files", "path": str(root / "nowhere")}, "there is no such folder"),
    "the other way to lie": (text({"ham.txt": b"a\nb\n", "spam.txt": b"c\n"}), "Set data.source.sample: line"),
    "nothing that fits": (text({"ham.md": b"a"}), "no file in it fits <label>/<name>.txt"),
    "another encoding": (text({"ham/a.txt": "é".encode("latin-1"), "spam/b.txt": b"b"}), "holds the byte 0xe9"),
    "a blank text": (text({"ham/a.txt": b" \n", "spam/b.txt": b"b"}), "it holds white space alone"),
    "an empty text": (text({"ham/a.txt": b"", "spam/b.txt": b"b"}), "the file is empty"),
    "a binary text": (text({"ham/a.txt": b"a\x00b", "spam/b.txt": b"b"}), "NUL bytes"),
    "one label": (text({"ham.txt": b"a b\nc d\n"}, sample="line"), "all 2 rows have the value 'ham'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_manifest_or_text_is_one_clear_sentence(case: str, tmp_path: Path) -> None:
    make, words = BAD[case]
    (tmp_path / "data").mkdir()
    source = make(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        check(tmp_path / "run", run_spec(source, target="label", split=SHARES))
    assert words in caught.value.message
    assert caught.value.exit_code == 2
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("sample", ["file", "line"])
def test_texts_by_file_or_by_line_are_the_same_rows_and_serving_takes_them_by_name(sample: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = {"ham": ["home", "love", "see", "you", "hello"], "spam": ["free", "prize", "win", "you", "cash"]}
    texts = {label: [f"{' '.join(rng.choice(list_, 4))} {i}" for i in range(30)] for label, list_ in words.items()}
    root = tmp_path / "texts"
    for label, lines in texts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        if sample == "line":
            (root / f"{label}.txt").write_text("\n\n".join(lines) + "\n")
        for index, line in enumerate(lines if sample == "file" else []):
            (root / label / f"{index}.txt").write_text(line + "\n")
    source = {"kind": "text_files", "path": str(root), "sample": sample}
    spec = run_spec(source, encode={"vocabulary": 60}, split=SHARES)
    raw = read_source(spec.data)
    assert raw.layout == "text"
    assert sorted(set(raw.rows.values["text"].words)) == sorted(set(texts["ham"] + texts["spam"]))  # type: ignore
    prepare(tmp_path / "run", spec)
    assert open_prepared(tmp_path / "run").classes == ("ham", "spam")
    transforms = load_transforms(json.loads((tmp_path / "run" / "transforms.json").read_text()))
    assert transforms.apply_rows([{"text": "free prize"}])["features"].any()


def test_a_label_that_changes_changes_the_digest(tmp_path: Path) -> None:
    """Else a finished prepare stage would be taken for that of the new labels."""
    write_images(tmp_path / "images")
    text({"ham/a.txt": b"a", "spam/b.txt": b"b"})(tmp_path / "texts")
    for source, old in (
        ({"kind": "image_folder", "path": str(tmp_path / "images")}, "images/dog"),
        ({"kind": "text_files", "path": str(tmp_path / "texts")}, "texts/spam"),
    ):
        before = read_source(data_spec(source)).digest
        (tmp_path / old).rename(tmp_path / f"{old}ge")
        assert read_source(data_spec(source)).digest != before


@pytest.mark.parametrize(
    "rule",
    [
        {"drop_columns": ["a"]}, {"columns": {"a": "number"}}, {"clean": {"impute": "mean"}}, {"max_missing": 0.5},
        {"encode": {"category": "hash"}}, {"select": {"method": "anova", "k": 3}}, {"split": {"group": "a"}},
        {"split": {"time": "a"}}, {"split": {"column": "a"}}, {"balance": {"method": "smote"}},
    ],
    ids=lambda rule: next(iter(rule)),
)  # fmt: skip
def test_a_rule_of_tables_is_refused_for_images(rule: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"data.{next(iter(rule))}"):
        check(tmp_path / "run", run_spec({"kind": "sklearn", "dataset": "digits"}, **rule))


@pytest.mark.parametrize("method", ["class_weights", "over", "under", "sampler"])
def test_images_are_balanced_in_training_alone(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.random((200, 3, 3)), y=(np.arange(200) % 5 == 0).astype(int))
    source = {"kind": "numpy", "inputs": f"{tmp_path}/a.npz:x", "targets": f"{tmp_path}/a.npz:y"}
    spec = run_spec(source, balance={"method": method})
    rows = prepare(tmp_path / "run", spec).facts.to_json()["splits"]["train"]
    data = open_prepared(tmp_path / "run")
    train = data.splits["train"]
    assert rows == check(tmp_path / "again", spec).resolved.data.num_rows_train == len(train)
    sums = np.bincount(train.targets, weights=train.weights)
    assert sums[0] == pytest.approx(sums[1], rel=0.02)
    assert np.bincount(data.splits["test"].targets).tolist() == [24, 6]
