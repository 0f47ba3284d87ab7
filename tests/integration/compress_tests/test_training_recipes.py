"""Recipes that train, in this process: prune, a dense network beside it, a student; and the test split's one use."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file

from cluster.bundle.files import open_bundle
from trainers.compress import stage as stage_module
from trainers.compress.candidate import Candidate
from trainers.compress.distill import TEACHER_INPUT, write_teacher_shards
from trainers.compress.stage import run_compression
from trainers.compress.students import build_student, scaled_model, student_arguments
from trainers.data.shards import PreparedData, Split, open_prepared
from trainers.export.session import open_session, run_batches
from trainers.models.predict import predict_torch
from trainers.models.weights import load_module, load_weights

TRAIN = {"epochs": 1, "workers": 1, "batch_size_global": 32}
LOOSE = {"max_drop": 0.2}
SMALL = {"minimize": "size"}
"""The target where a choice is asked for: networks this small differ in time by the clock's noise alone."""


def by_name(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in facts["candidates"]}


def weights_in(graph: Path) -> int:
    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(str(graph)).graph.initializer)


def test_pruning_removes_arithmetic_and_bytes_and_is_compared_with_a_dense_network(make_context: Any) -> None:
    section = {
        "recipes": ("prune", "int8_weight_only"), "budget": LOOSE, "max_class_drop": 1.0, "target": SMALL,
        "prune": {"ratios": (0.25, 0.5, 0.75), "epochs": 2, "learning_rate": 3e-3},
    }  # fmt: skip
    context = make_context("compress", compress=section, train={**TRAIN, "epochs": 2})
    facts = run_compression(context).facts.to_json()
    found = by_name(facts)
    half = found["prune50"]
    assert half["accepted"], half["reason"]
    assert half["notes"]["after"]["macs"] < half["notes"]["before"]["macs"] / 2
    assert weights_in(context.folder / "model.prune50.onnx") < weights_in(context.folder / "model.onnx") / 2
    assert all(one["independence"]["independent"] for one in found.values() if one["verdict"] != "stopped")
    tried = {name for name in found if name.startswith("prune") and "_" not in name}
    skipped = {one["name"]: one["reason"] for one in facts["skipped"] if one["recipe"] == "prune"}
    assert tried | set(skipped) == {"prune25", "prune50", "prune75"}
    assert skipped["prune25"] == "a stronger ratio keeps the budget"
    dense = next(one for name, one in found.items() if name.startswith("dense") and "_" not in name)
    assert facts["rival"]["rival"].startswith(dense["name"])
    assert facts["rival"]["recommended"] in found
    assert facts["rival"]["recommended"] in facts["rival"]["sentence"]


def test_the_pruned_network_is_rebuilt_from_its_plan_and_answers_like_its_graph(make_context: Any) -> None:
    section = {
        "recipes": ("prune",), "budget": LOOSE, "dense_rival": False, "max_class_drop": 1.0, "target": SMALL,
        "prune": {"ratios": (0.5,), "epochs": 2, "learning_rate": 3e-3, "distill": False},
    }  # fmt: skip
    context = make_context("compress", compress=section, train=TRAIN)
    assert run_compression(context).facts.to_json()["chosen"] == "prune50"
    prepared = open_prepared(context.files("prepare"))
    plan = json.loads((context.folder / "plan.prune50.json").read_text())
    model = json.loads((context.folder / "network.prune50.json").read_text())["model"]
    inputs = [tensor.model_dump(mode="json") for tensor in prepared.inputs]
    module = build_student(model, inputs, prepared.num_outputs, plan=plan)
    load_weights(module, context.folder / "weights.prune50.safetensors")
    rows = {"image": np.array(prepared.splits["gate"].inputs["image"][:20])}
    answers = run_batches(open_session(context.folder / "model.prune50.onnx"), rows)["logits"]
    np.testing.assert_allclose(predict_torch(module.eval(), rows), answers, atol=1e-4)


@pytest.mark.slow
def test_a_network_that_was_made_is_not_trained_again(make_context: Any, monkeypatch: Any) -> None:
    section = {
        "recipes": ("prune",), "budget": LOOSE, "dense_rival": False, "max_class_drop": 1.0, "target": SMALL,
        "prune": {"ratios": (0.5,), "epochs": 1, "distill": False},
    }  # fmt: skip
    first = run_compression(make_context("compress", compress=section, train=TRAIN)).facts.to_json()

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr("trainers.compress.retraining.fit", no_training)
    again = run_compression(make_context("compress", compress=section, train=TRAIN)).facts.to_json()
    assert by_name(again)["prune50"]["accuracy"] == by_name(first)["prune50"]["accuracy"]
    with pytest.raises(AssertionError, match="trained again"):
        other = {**section, "prune": {**section["prune"], "ratios": (0.75,)}}
        run_compression(make_context("compress", compress=other, train=TRAIN))


def test_a_student_learns_from_the_network_and_a_bundle_together(make_context: Any, digits_run: Path) -> None:
    teacher = str(digits_run / "bundle")
    section = {
        "recipes": ("distill",), "budget": LOOSE, "dense_rival": False, "max_class_drop": 1.0, "target": SMALL,
        "distill": {"width": 0.5, "epochs": 6, "teachers": (teacher,), "feature_weight": 0.5},
    }  # fmt: skip
    context = make_context("compress", compress=section, train=TRAIN)
    facts = run_compression(context).facts.to_json()
    student = by_name(facts)["student50"]
    assert student["accepted"], student["reason"]
    assert student["notes"]["model"]["width"] == 8
    assert student["size_bytes"] < (context.folder / "model.onnx").stat().st_size / 2
    (shards,) = (context.folder / "models").glob("teacher-*")
    taught = open_prepared(shards)
    assert set(taught.splits) == {"train", "validation"}
    assert taught.splits["train"].inputs[TEACHER_INPUT].shape == (len(taught.splits["train"]), 10 + 32 * 16)
    (made,) = (context.folder / "models").glob("student50-*")
    assert not any("projection" in name for name in load_file(made / "weights.safetensors"))


def test_the_teachers_answers_are_their_mean_and_are_written_once(
    digits_run: Path, trained_stages: Path, prepared_digits: PreparedData, tmp_path: Path
) -> None:
    from tests.integration.compress_tests.conftest import digits_spec

    module = load_module(digits_spec().model, prepared_digits.inputs, 10, trained_stages / "train")
    alone = predict_torch(module, prepared_digits.splits["train"].inputs)
    weak = build_student(**student_arguments(scaled_model(digits_spec().model, 0.5), prepared_digits.inputs, 10)).eval()
    write_teacher_shards(prepared_digits, tmp_path / "two", weak, (str(digits_run / "bundle"),))
    both = open_prepared(tmp_path / "two").splits["train"].inputs[TEACHER_INPUT]
    expected = (predict_torch(weak, prepared_digits.splits["train"].inputs) + alone) / 2
    np.testing.assert_allclose(both, expected, atol=1e-4)
    stamp = (tmp_path / "two" / "dataset.json").stat().st_mtime_ns
    write_teacher_shards(prepared_digits, tmp_path / "two", module, ())
    assert (tmp_path / "two" / "dataset.json").stat().st_mtime_ns == stamp


class Watched(dict[str, Split]):
    """Splits that note when the test split is read."""

    def __init__(self, splits: dict[str, Split], seen: list[str]) -> None:
        super().__init__(splits)
        self.seen = seen

    def __getitem__(self, name: str) -> Split:
        self.seen.append(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.append(name)
        return super().get(name, default)


def test_a_candidate_whose_answers_are_not_numbers_is_rejected_before_it_is_timed(make_search: Any) -> None:
    search = make_search()
    outputs = search.baseline.outputs.copy()
    outputs[3, 0] = np.nan
    made = Candidate("bad", "fp16", precision="fp16").made(search.baseline.path)
    candidate = search.decide(made, outputs)
    assert not candidate.accepted
    assert candidate.reason == "1 of 500 gate rows have NaN or infinite outputs"
    assert candidate.cost is None


def test_the_test_split_is_read_once_after_the_choice(make_context: Any, monkeypatch: Any) -> None:
    seen: list[str] = []

    def watched(folder: Path) -> PreparedData:
        prepared = open_prepared(folder)
        return replace(prepared, splits=Watched(prepared.splits, seen))

    def choose(*arguments: Any) -> Any:
        seen.append("chosen")
        return choose_best(*arguments)

    choose_best = stage_module.choose_best
    monkeypatch.setattr(stage_module, "open_prepared", watched)
    monkeypatch.setattr("trainers.compress.graph_recipes.open_prepared", watched)
    monkeypatch.setattr(stage_module, "choose_best", choose)
    section = {
        "recipes": ("prune", "int8_weight_only"), "budget": LOOSE, "dense_rival": False, "max_class_drop": 1.0,
        "target": SMALL,
        "prune": {"ratios": (0.5,), "epochs": 1, "distill": False},
    }  # fmt: skip
    facts = run_compression(make_context("compress", compress=section, train=TRAIN)).facts.to_json()
    assert facts["chosen"] != "fp32"
    assert seen.count("test") == 1
    assert seen.index("test") > seen.index("chosen")
    assert facts["test"]["gate"]["num_samples"] == 270


def test_a_stage_that_fails_leaves_the_last_good_bundle_whole(make_context: Any, digits_run: Path) -> None:
    context = make_context("compress", compress={"recipes": ("int8_static",)}, train=TRAIN)
    shutil.copytree(digits_run / "bundle", context.run.bundle)
    weights = context.run.stage("train")
    weights.unlink()
    weights.mkdir()
    (weights / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(Exception, match=r"weights\.safetensors"):
        run_compression(context)
    assert open_bundle(context.run.bundle).manifest.name == "digits"
