"""Raw rows by column name over HTTP: the served answer is that of the pipeline that prepared the training data.

The transforms are fitted by the data room on a CSV; the reference reads the CSV with the data room's own reader and
asks ONNX Runtime; the other side is `python -m serve` as a process, asked with JSON.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest

from cluster.bundle import (
    BundleManifest,
    TensorSignature,
    TensorSpec,
    Variant,
    finish_bundle,
    open_bundle,
    write_bundle,
)
from cluster.bundle.files import TRANSFORMS
from cluster.bundle.transforms import Transforms
from cluster.pipeline.summary import predict_request
from cluster.spec.data import DataSpec
from serve.deployments import commands
from serve.deployments.__main__ import parse
from tests.bundles import linear_graph
from tests.contract.protocol_tests.conftest import server_process
from trainers.data.executors import ONE_PROCESS
from trainers.data.prepare import write
from trainers.data.read.sources import read_source
from trainers.data.row_plan import plan_rows
from trainers.data.shards import open_prepared

TOLERANCE = 1e-5
START = datetime(2020, 1, 1)
JOBS = ("baker", "clerk", "Dr. med.", "élève")
HEADER = ("age", "income", "job", "member", "since", "weight", "postcode", "label")
WRITTEN = {"since": "13/07/2022 21:00", "weight": "71.5 kg", "postcode": "00501"}
"""A row's date, number with a unit and code of digits, as the file writes them."""


def write_csv(path: Path, rows: int, seed: int, jobs: tuple[str, ...]) -> list[dict[str, str]]:
    """Numbers and categories with missing values; the last row has nothing but its label."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        age, income = rng.integers(18, 80), rng.exponential(2000)
        made.append(
            {
                "age": "" if rng.random() < 0.1 else str(age),
                "income": "" if rng.random() < 0.1 else f"{income:.2f}",
                "job": "" if rng.random() < 0.1 else str(rng.choice(jobs)),
                "member": str(rng.choice(["yes", "no"])),
                "since": f"{START + timedelta(minutes=int(rng.integers(0, 2_000_000))):%d/%m/%Y %H:%M}",
                "weight": f"{rng.uniform(50, 100):.1f} kg",
                "postcode": f"{501 + rng.integers(0, 5):05}",
                "label": ("low", "mid", "high")[int(income > 1000) + int(age > 50)],
            }
        )
    made[-1] |= dict.fromkeys(HEADER[:-1], "")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(made)
    return made


def data_spec(path: Path) -> DataSpec:
    raw = {
        "source": {"kind": "csv", "path": str(path)},
        "target": "label",
        "encode": {"number": "standard"},
        "split": {"validation": 0.1, "calibration": 0.1, "gate": 0.1, "test": 0.1, "seed": 7},
    }
    return DataSpec.model_validate_json(json.dumps(raw))


def write_table_bundle(folder: Path, prepared: Path, classes: tuple[str, ...]) -> Path:
    """A bundle with the table's transforms and a linear model over its features."""
    data = open_prepared(prepared)
    (tensor,) = data.inputs
    graph = linear_graph(tensor.item_shape, len(classes))
    graph.graph.input[0].name = graph.graph.node[0].input[0] = tensor.name
    sample = data.splits["test"].inputs[tensor.name][:4]
    with write_bundle(folder) as partial:
        onnx.save(graph, partial / "model.onnx")
        logits = run_graph(partial / "model.onnx", tensor.name, sample)
        np.savez(partial / "sample.npz", **{f"inputs/{tensor.name}": sample, "outputs/fp32/logits": logits})
        shutil.copyfile(prepared / TRANSFORMS, partial / TRANSFORMS)
        outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, len(classes))),)
        finish_bundle(
            partial,
            BundleManifest(
                name="people",
                created_unix_s=0.0,
                task="classification",
                classes=classes,
                signature=TensorSignature(inputs=(tensor,), outputs=outputs),
                variants=(Variant(name="fp32", file="model.onnx", precision="fp32"),),
                default_variant="fp32",
                model={"family": "linear"},
                files={},
            ),
        )
    return folder


def run_graph(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {name: np.ascontiguousarray(rows)})[0]
    return logits


class People:
    """An endpoint of the table, rows that it has never seen, and what the pipeline says about them."""

    def __init__(self, folder: Path) -> None:
        write_csv(folder / "train.csv", 400, 1, JOBS)
        spec = data_spec(folder / "train.csv")
        plan = plan_rows(spec)
        transforms, *_ = write(folder / "prepared", plan, ONE_PROCESS)
        assert isinstance(transforms, Transforms)
        self.classes = plan.target.classes
        self.bundle = write_table_bundle(folder / "bundle", folder / "prepared", plan.target.classes)
        found = write_csv(folder / "new.csv", 60, 2, (*JOBS, "astronaut", "Baker"))
        self.rows: list[dict[str, Any]] = [{key: row[key] for key in HEADER[:-1]} for row in found]
        new = read_source(data_spec(folder / "new.csv")).rows
        ((name, features),) = transforms.apply(new.values).items()
        logits = run_graph(self.bundle / "model.onnx", name, features).astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        self.probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        self.url = ""

    def ask(self, rows: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", json={"rows": rows}, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    made = People(tmp_path_factory.mktemp("people"))
    with server_process(made.bundle) as address:
        made.url = f"http://{address}"
        yield made


def typed(row: dict[str, str]) -> dict[str, Any]:
    """The row as a program sends it: numbers as numbers, null for what is missing."""
    numbers = {key: float(row[key]) if row[key] else None for key in ("age", "income")}
    numbers["weight"] = float(row["weight"].removesuffix(" kg")) if row["weight"] else None
    return {key: value or None for key, value in row.items()} | numbers


@pytest.mark.parametrize("how", [dict, typed], ids=["as text", "typed"])
def test_served_probabilities_are_those_of_the_pipeline(people: People, how: Any) -> None:
    answer = people.ask([how(row) for row in people.rows])
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert {row["job"] for row in people.rows} >= {"astronaut", "Baker", ""}  # unknown and missing are among them
    found = np.array([[each["probabilities"][label] for label in people.classes] for each in predictions])
    np.testing.assert_allclose(found, people.probabilities, atol=TOLERANCE, rtol=0)
    labels = [people.classes[index] for index in people.probabilities.argmax(axis=1)]
    assert [each["label"] for each in predictions] == labels
    assert len({tuple(np.round(row, 4)) for row in found}) > len(found) // 2  # the rows matter


def test_one_row_alone_has_the_answer_that_it_has_among_others(people: People) -> None:
    for index in (0, 17, len(people.rows) - 1):
        (found,) = people.ask([people.rows[index]]).json()["predictions"]
        values = [found["probabilities"][label] for label in people.classes]
        np.testing.assert_allclose(values, people.probabilities[index], atol=TOLERANCE, rtol=0)


def test_a_target_column_in_the_row_changes_nothing(people: People) -> None:
    with_target = [{**row, "label": "high"} for row in people.rows[:3]]
    assert people.ask(with_target).json() == people.ask(people.rows[:3]).json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job": ...}, ["column 'job' is missing in row 1"]),
        ({"age": ..., "agee": "4", "zip": 1}, ["'age' is missing", "'agee' is unknown (did you mean 'age'?)", "'zip'"]),
        ({"age": "forty"}, ["age", "forty"]),
        ({"age": [1]}, ["age"]),
        ({"job": {"a": 1}}, ["job"]),
        ({"since": "07-13-2022"}, ["column 'since'", "row 1 has '07-13-2022'", "dates written %d/%m/%Y %H:%M"]),
        ({"weight": "150 lb"}, ["column 'weight'", "row 1 has '150 lb'", "with the unit 'kg'"]),
    ],
    ids=["missing", "renamed", "text for a number", "list", "object", "another writing", "another unit"],
)
def test_a_wrong_schema_is_a_json_400_that_names_the_columns(
    people: People, change: dict[str, Any], words: list[str]
) -> None:
    wrong = {key: value for key, value in {**people.rows[0], **change}.items() if value is not ...}
    answer = people.ask([people.rows[0], wrong])
    assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
    assert [word for word in words if word not in answer.json()["error"]] == [], answer.text
    assert people.ask(people.rows[:1]).status_code == 200


@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number(people: People, value: bool) -> None:
    answer = people.ask([{**people.rows[0], "age": value}])
    assert (answer.status_code, f"row 0 has {str(value).lower()}" in answer.json()["error"]) == (400, True)


def test_what_training_did_not_have_is_named_by_column_and_row_and_counted(people: People) -> None:
    known = {"age": 40, "income": 1500.0, "job": "clerk", "member": "yes", **WRITTEN}
    before = unseen_counts(people)
    plain = people.ask([known, {**known, "age": None, "job": None}]).json()
    assert "unseen" not in plain
    assert not any("unseen" in each for each in plain["predictions"])
    rows = [known, {**known, "job": "astronaut"}, {**known, "job": "Q", "age": "1000"}, {**known, "job": "Q"}]
    answer = people.ask(rows)
    assert answer.status_code == 200, answer.text
    assert answer.json()["unseen"] == {"age": ["1000"], "job": ["astronaut", "Q"]}
    assert [each.get("unseen", []) for each in answer.json()["predictions"]] == [[], ["job"], ["age", "job"], ["job"]]
    after = unseen_counts(people)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert {name: count for name, count in grown.items() if count} == {"age": 1, "job": 3}
    stats = httpx.get(f"{people.url}/stats", timeout=30, trust_env=False).json()
    assert stats[0]["unseen"] == after


def test_manta_predict_tells_it_as_a_note(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(people.rows[0]))
        writer.writeheader()
        writer.writerows([{**people.rows[0], "job": "Q"}, {**people.rows[0], "job": "clerk"}])
    monkeypatch.setattr(commands, "_url", lambda *_: people.url)
    assert commands.predict(parse(["predict", "people", str(tmp_path / "rows.csv")])) == 0
    told = capsys.readouterr()
    assert "Note: training did not have 'Q' in column 'job'." in told.err + told.out
    assert told.out.count("\n") >= 2


def unseen_counts(people: People) -> dict[str, int]:
    text = httpx.get(f"{people.url}/metrics", timeout=30, trust_env=False).text
    found = re.findall(r'^manta_serve_unseen_values_total\{column="(\w+)".*\} (\S+)$', text, re.MULTILINE)
    return {column: int(float(count)) for column, count in found}


def test_a_number_past_fp32_is_refused_by_its_columns_name(people: People) -> None:
    answer = people.ask([people.rows[0], {**people.rows[0], "income": 1e300}])
    assert (answer.status_code, "row 1 makes no finite number of 'income'" in answer.json()["error"]) == (400, True)


def test_the_row_that_a_run_prints_is_a_training_row_that_predict_takes(people: People) -> None:
    request = predict_request(open_bundle(people.bundle))
    assert request is not None
    (row,) = request["rows"]
    assert sorted(row) == sorted(HEADER[:-1])
    assert None not in row.values(), "the first rows have some without a hole"
    assert datetime.strptime(row["since"], "%d/%m/%Y %H:%M") > START
    answer = people.ask(request["rows"])
    assert (answer.status_code, "unseen" in answer.json()) == (200, False)


def test_refuse_answers_what_training_did_not_have_with_400(people: People) -> None:
    strange = {"age": -500, "income": 1.0, "job": "Q", "member": "yes", **WRITTEN}
    with server_process(people.bundle, "--unseen", "refuse") as address:
        url = f"http://{address}/predict"
        answer = httpx.post(url, json={"rows": [strange]}, timeout=30, trust_env=False)
        assert answer.status_code == 400
        for words in ("column 'age' has -500 in row 0, far outside training's 18 to 79", "column 'job' has 'Q'",
                      "serve.unseen is refuse"):  # fmt: skip
            assert words in answer.json()["error"], answer.text
        assert httpx.post(url, json={"rows": [strange | {"age": 30, "job": "clerk"}]}, trust_env=False).is_success


def test_rows_without_column_names_are_refused(people: People) -> None:
    answer = people.ask([[1, 2, 3, 4]])
    assert (answer.status_code, "column name" in answer.json()["error"]) == (400, True)


def test_a_bundle_whose_transforms_were_changed_is_not_served(people: People, tmp_path: Path) -> None:
    shutil.copytree(people.bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / TRANSFORMS
    path.write_text(path.read_text().replace("baker", "BAKER"))
    with pytest.raises(AssertionError, match=r"transforms\.json"), server_process(tmp_path / "bundle"):
        pass
