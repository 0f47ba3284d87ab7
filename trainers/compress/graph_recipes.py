"""One graph recipe on one parent graph: make the file, compare it cheaply, predict the gate split.

A task is a pure function of (parent's bytes, recipe, rows): it runs in this process or on a Ray worker, writes into a
folder of its own, and its result is found again by its digest (ray_tasks.py). Latency is not measured here: tasks run
side by side and would disturb each other.

Invariant: never imports torch, so that a worker starts in a second.

Covered: every recipe of `GraphRecipe`. Not covered: recipes that train (training_recipes.py).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationMethod

from cluster.atomic import digest_json, write_json
from cluster.errors import MantaError
from cluster.temporary import scratch_folder
from trainers.compress.candidate import GraphTask
from trainers.compress.exclude import find_exclusion
from trainers.compress.presets import StaticRecipe, preset_of
from trainers.compress.proxies import Proxies, compare_outputs
from trainers.compress.quantize import (
    convert_fp16,
    preprocess,
    quantize_int8_static,
    quantize_weights_only,
    thin_convolutions,
)
from trainers.compress.row_wise import quantize_row_wise
from trainers.compress.rows import CompressionRows, rows_of, spread_rows
from trainers.data.shards import open_prepared
from trainers.export.bfloat16 import convert_bf16
from trainers.export.session import predict_graph

FORMAT = 3  # raise when a recipe's meaning changes: cached results of the old meaning are then made again
METHODS = {"int8_static_entropy": CalibrationMethod.Entropy, "int8_static_percentile": CalibrationMethod.Percentile}
MODEL, GATE, OUTCOME = "model.onnx", "gate.npy", "outcome.json"


def task_digest(task: GraphTask) -> str:
    """Names the cached result: parent, recipe and everything of the spec that changes the file."""
    spec = task.spec
    return digest_json(
        {
            "format": FORMAT,
            "recipe": task.recipe,
            "parent": task.parent_sha256,
            "data": task.data_sha256,
            "calibration_rows": spec.calibration_rows,
            "percentile": spec.percentile,
            "device": spec.target.device,
            "proxy": spec.proxy.model_dump(),
            "budget": spec.budget.max_drop if task.recipe == "int8_static_excluded" else None,
            "onnxruntime": onnxruntime.__version__,
        }
    )


def run_graph_recipe(task: GraphTask, folder: Path) -> None:
    """Write `model.onnx`, `gate.npy` (outputs on the gate split) and `outcome.json` into `folder`.

    A recipe that cannot be applied or that the proxies stop leaves an outcome with its reason and no `gate.npy`. A full
    disk or memory says nothing about the recipe: it is raised, so that the task is run again.
    """
    rows = rows_of(open_prepared(task.prepared), calibration_rows=task.spec.calibration_rows)
    outcome: dict[str, Any] = {"recipe": task.recipe, "notes": {}}
    try:
        with scratch_folder("trial") as scratch:
            outcome["notes"] = _make(task, rows, folder / MODEL, scratch)
        proxies = _proxies(task, rows, folder / MODEL)
        outcome["proxies"] = asdict(proxies)
        outcome["stopped"] = proxies.hopeless(task.spec.proxy)
        if outcome["stopped"] is None:
            np.save(folder / GATE, predict_graph(folder / MODEL, rows.gate))
    except MantaError as error:
        outcome["stopped"] = error.message
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - the task's seam: the errors of a quantizer have no common base
        outcome["stopped"] = (
            f"the recipe cannot take this graph: {type(error).__name__}: {' '.join(str(error).split())}"
        )
    write_json(folder / OUTCOME, outcome)


def _make(task: GraphTask, rows: CompressionRows, target: Path, scratch: Path) -> dict[str, Any]:
    """Write the recipe's file; returns notes for the report."""
    recipe, spec = task.recipe, task.spec
    if recipe == "int8_weight_only":
        quantize_weights_only(task.parent, target)
        return {}
    if recipe == "fp16":
        convert_fp16(task.parent, target)
        return {}
    if recipe == "bf16":
        convert_bf16(task.parent, target)
        return {}
    prepared = scratch / "prepared.onnx"
    preprocess(task.parent, prepared)
    if recipe == "int8_dynamic":
        return {"scales": "row", "products": quantize_row_wise(prepared, target, preset_of(spec))}
    preset = preset_of(spec, per_channel=recipe != "int8_static_per_tensor")
    ranges = scratch / "ranges.json"
    notes = {
        "preset": preset.name,
        "calibration_rows": len(next(iter(rows.calibration.values()))),
        "float_for_speed": thin_convolutions(prepared, preset.thin_channels_max),
    }
    if recipe == "int8_static_excluded":
        return {**notes, **find_exclusion(prepared, target, rows, preset, spec.budget.max_drop, scratch=scratch)}
    static = StaticRecipe(preset, METHODS.get(recipe, CalibrationMethod.MinMax), spec.percentile)
    quantize_int8_static(prepared, target, rows.calibration, static, ranges=ranges)
    return {**notes, "method": static.method.name}


def _proxies(task: GraphTask, rows: CompressionRows, candidate: Path) -> Proxies:
    chosen = spread_rows(len(next(iter(rows.calibration.values()))), task.spec.proxy.rows)
    some = {name: array[chosen] for name, array in rows.calibration.items()}
    return compare_outputs(
        predict_graph(task.parent, some), predict_graph(candidate, some), classification=rows.task == "classification"
    )
