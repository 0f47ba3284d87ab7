"""The run in a few figures, from its records: what the final table, `--json` and `manta show` print."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.atomic import write_json
from cluster.bundle.files import Bundle, open_bundle
from cluster.bundle.signature import DATATYPE_OF
from cluster.bundle.transforms import ArrayTransforms, load_transforms
from cluster.store.run_folder import RunFolder, StageRecord
from cluster.store.stage_facts import DeployFacts, EvaluateFacts, ExportFacts, PredictFacts

REQUEST_FILE = "request.json"
DIGITS = 6  # float32 has seven, and standardizing there and back costs one


def summarize(
    run: RunFolder, records: Mapping[str, StageRecord], *, kept: bool = False, remote: bool = False
) -> dict[str, Any]:
    """Figures of the stages that have run; keys of stages that have not are absent.

    `kept`: the driver goes on holding the endpoint; `remote`: the endpoint is on a cluster that outlives the run.
    """
    summary: dict[str, Any] = {"run": run.name, "folder": str(run.path)}
    if evaluated := EvaluateFacts.of(records):
        summary["metrics"] = evaluated.metrics
        summary["baseline"] = evaluated.baseline
    if ExportFacts.of(records):
        summary.update(_bundle_figures(run, open_bundle(run.bundle)))
    if predicted := PredictFacts.of(records):
        summary["endpoint_check"] = predicted.to_json()
        summary["latency"] = records[PredictFacts.stage].details
    if endpoint := DeployFacts.of(records):
        summary["endpoint"] = {
            **_endpoint(run, endpoint),
            "kept": kept or remote,
            "stop": f"manta undeploy {endpoint.name}" if remote else f"manta stop {run.name}",
        }
    summary["report"] = str(run.report)
    summary["stages"] = {name: round(record.duration_s, 3) for name, record in records.items()}
    return summary


def _bundle_figures(run: RunFolder, bundle: Bundle) -> dict[str, Any]:
    sizes = {v.name: bundle.manifest.files[v.file].size_bytes for v in bundle.manifest.variants}
    baseline = next((v.name for v in bundle.manifest.variants if v.verdict == "baseline"), None)
    return {
        "bundle": str(run.bundle),
        "variant": bundle.manifest.default_variant,
        "size_before_bytes": sizes.get(baseline or ""),
        "size_after_bytes": sizes[bundle.manifest.default_variant],
    }


def _endpoint(run: RunFolder, facts: DeployFacts) -> dict[str, Any]:
    request = run.path / REQUEST_FILE
    bundle = open_bundle(run.bundle)
    raw = predict_request(bundle)
    write_json(request, raw or infer_request(bundle))
    path = "predict" if raw else f"v2/models/{facts.name}/infer"
    relative = shlex.quote(_relative(request))
    return {
        **facts.to_json(),
        "serve": f"manta deploy {shlex.quote(_relative(run.bundle))} --name {facts.name}",
        "curl": f"curl -s {facts.url}/{path} -d @{relative}",
    }


def predict_request(bundle: Bundle) -> dict[str, Any] | None:
    """One raw row, as a person has it, for /predict; None for a bundle that keeps none (its model takes tensors)."""
    raw = bundle.transforms()
    transforms = load_transforms(raw) if raw is not None else None
    if isinstance(transforms, ArrayTransforms):
        row = transforms.undo({transforms.name: bundle.sample()[f"inputs/{transforms.name}"][:1]})[transforms.name][0]
        return {"rows": [_rounded(row).tolist()]}
    return {"rows": [transforms.example]} if transforms is not None and transforms.example else None


def _rounded(row: np.ndarray) -> np.ndarray:
    """The row to `DIGITS` digits of its largest value: -9.9e-08 beside 16 is the 0 that it was."""
    largest = float(np.abs(row).max(initial=0.0))
    if largest == 0.0:
        return row
    return np.asarray(np.round(row.astype(np.float64), DIGITS - 1 - math.floor(math.log10(largest))) + 0.0)


def infer_request(bundle: Bundle) -> dict[str, Any]:
    """One real row as an Open Inference Protocol v2 request body."""
    sample = bundle.sample()
    inputs = []
    for tensor in bundle.manifest.signature.inputs:
        row = sample[f"inputs/{tensor.name}"][:1]
        inputs.append(
            {
                "name": tensor.name,
                "shape": list(row.shape),
                "datatype": DATATYPE_OF[row.dtype],
                "data": json.loads(json.dumps(row.ravel().tolist())),
            }
        )
    return {"inputs": inputs}


def _relative(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
