"""The pipeline's last two stages: deploy the bundle of a run, and ask it with the run's own test rows."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bundle import Bundle, open_bundle
from cluster.bundle.files import TRANSFORMS
from cluster.bundle.transforms import ArrayTransforms, load_transforms
from cluster.errors import EndpointError
from cluster.pipeline.stage import StageContext, StageResult
from cluster.spec.serve import ServeSpec
from cluster.store.stage_facts import DeployFacts, PredictFacts
from cluster.telemetry.events import EndpointReady
from serve.access import first_token
from serve.client import EndpointClient
from serve.config import EndpointConfig, endpoint_name
from serve.deployments.directory import recorded_here, remember
from serve.deployments.lifetime import RayLifetime

LOG = logging.getLogger(__name__)
SINGLE_ROWS_MAX = 200  # requests of one row, for latency: enough for a p99 with two samples above it
ROWS_MAX = 2000  # test rows that are asked; more does not change what is shown
CHUNK_ROWS = 32
AGREEMENT_MIN = 0.9  # below this the endpoint answers something else than what was evaluated


def deploy(context: StageContext) -> StageResult:
    """Start the endpoint of this run on the running Ray."""
    from serve.deployments.endpoint import RolloutOptions, roll_out
    from serve.deployments.listening import listens_now, not_applied

    spec = context.run_resolved.spec.serve
    if spec is None:
        return StageResult(status="skipped", headline="serve: null")
    bundle = open_bundle(context.run.bundle)
    name = spec.name or endpoint_name(context.run.name)
    folder = context.run.bundle.resolve()
    started, running = time.perf_counter(), listens_now()
    endpoint = roll_out(
        name,
        lambda rollout: EndpointConfig.of_run(name, folder, spec, rollout.config),
        RolloutOptions(reason=f"run {context.run.name}", progress=lambda text: context.progress(0, text=text)),
    )
    ready_s = time.perf_counter() - started
    if note := not_applied(_places(spec), running):
        LOG.warning(note)
    context.events.emit(
        EndpointReady(name=endpoint.name, url=endpoint.url, version=endpoint.version, replicas=endpoint.replicas)
    )
    if context.owns_host:
        import ray

        # other terminals find it while this process lives, as they find one of `manta deploy`
        remember(endpoint.name, endpoint.url, ray.get_runtime_context().gcs_address)
    return StageResult(
        facts=DeployFacts(name=endpoint.name, url=endpoint.url, version=endpoint.version),
        headline=f"{endpoint.url} serves {bundle.manifest.default_variant}, ready in {ready_s:.1f} s",
        details={"ready_s": round(ready_s, 3)},
    )


def _places(spec: ServeSpec) -> dict[str, Any]:
    """Host and ports that are not the defaults, and so were written by someone."""
    plain = ServeSpec()
    return {
        key: getattr(spec, key) for key in ("host", "port", "grpc_port") if getattr(spec, key) != getattr(plain, key)
    }


def start_early(context: StageContext) -> None:
    """Start Ray Serve (controller and proxy) while the model is trained. On a cluster the deploy stage does it."""
    spec = context.run_resolved.spec.serve
    if spec is None or not context.owns_host:
        return
    context.ensure_ray()
    from serve.deployments.listening import start_serve

    start_serve(spec)


def ray_lifetime() -> Callable[[], bool]:
    """Whether the Ray of this process is still needed: a kept run calls it again and again until it is not."""
    from serve.deployments.endpoint import still_serves

    return RayLifetime(still_serves, recorded_here).is_needed


def predict(context: StageContext) -> StageResult:
    """Send real test rows over HTTP in the protocol, and compare with the labels and with the evaluated model."""
    endpoint = context.facts(DeployFacts)
    if endpoint is None:
        return StageResult(status="skipped", headline="there is no endpoint")
    bundle = open_bundle(context.run.bundle)
    inputs, targets = read_test_rows(context.files("prepare"), bundle)
    spec = context.run_resolved.spec.serve
    token = first_token(spec.token_file if spec is not None else None)
    with EndpointClient(endpoint.url, endpoint.name, token=token) as client:
        outputs, latencies_ms = ask(client, bundle, inputs, context)
    reference = evaluated_outputs(context.files("evaluate"), len(targets))
    score = compare(bundle, outputs, targets, reference)
    p50, p99 = (float(value) for value in np.percentile(latencies_ms, (50, 99)))
    if score.get("agreement", 1.0) < AGREEMENT_MIN:
        raise EndpointError(
            f"Cannot trust endpoint '{endpoint.name}'",
            found=f"it agrees with the evaluated model on {score['agreement']:.1%} of {len(targets)} test rows",
            rule=f"at least {AGREEMENT_MIN:.0%} must agree",
            remedy="Look at the compress stage's verdict, or serve the float variant with compress: null.",
        )
    words = ", ".join(f"{name} {value:.4f}" for name, value in score.items())
    return StageResult(
        facts=PredictFacts(rows=len(targets), **score),
        headline=f"{len(targets)} test rows over HTTP: {words}; latency p50 {p50:.2f} ms, p99 {p99:.2f} ms",
        details={"latency_ms_p50": round(p50, 4), "latency_ms_p99": round(p99, 4), "single_rows": len(latencies_ms)},
    )


def read_test_rows(prepared: Path, bundle: Bundle) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs and targets of the first test rows, as the prepare stage wrote them."""
    folder = prepared / "test"
    targets = np.load(folder / "targets.npy", mmap_mode="r", allow_pickle=False)[:ROWS_MAX]
    inputs = {
        tensor.name: np.load(folder / f"inputs.{tensor.name}.npy", mmap_mode="r", allow_pickle=False)[:ROWS_MAX]
        for tensor in bundle.manifest.signature.inputs
    }
    if "normalize" in bundle.manifest.source.get("fused", ()):  # the graph standardizes: it takes raw values
        transforms = load_transforms(json.loads((prepared / TRANSFORMS).read_text(encoding="utf-8")))
        inputs = transforms.undo(inputs) if isinstance(transforms, ArrayTransforms) else inputs
    return inputs, np.asarray(targets)


def ask(
    client: EndpointClient, bundle: Bundle, inputs: dict[str, np.ndarray], context: StageContext
) -> tuple[np.ndarray, list[float]]:
    """The first output for all rows: some asked one by one, with their latencies, the others in chunks."""
    name = bundle.manifest.signature.outputs[0].name
    rows = len(next(iter(inputs.values())))
    single = min(rows, SINGLE_ROWS_MAX)
    bounds = [(row, row + 1) for row in range(single)]
    bounds += [(row, min(row + CHUNK_ROWS, rows)) for row in range(single, rows, CHUNK_ROWS)]
    found, latencies_ms = [], []
    for start, stop in bounds:
        started = time.perf_counter()
        answer = client.infer({key: np.ascontiguousarray(array[start:stop]) for key, array in inputs.items()})
        if stop - start == 1:
            latencies_ms.append((time.perf_counter() - started) * 1e3)
        found.append(answer.outputs[name])
        context.progress(stop, rows, "rows")
    return np.concatenate(found), latencies_ms


def evaluated_outputs(folder: Path, rows: int) -> np.ndarray | None:
    """What the evaluate stage's model gave for the same rows, or None where it left nothing."""
    path = folder / "predictions.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        outputs = arrays["logits"][:rows]
    return outputs if len(outputs) == rows else None


def compare(bundle: Bundle, outputs: np.ndarray, targets: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
    """`accuracy` and `agreement` for classes; `mean_absolute_error` and `agreement` (within 1 % of the spread; for a
    variant that the gate accepted in place of the float graph, within the evaluated model's own error)."""
    if bundle.manifest.task == "classification":
        labels = outputs.argmax(axis=1)
        score = {"accuracy": round(float((labels == targets).mean()), 6)}
        if reference is not None:
            score["agreement"] = round(float((labels == reference.argmax(axis=1)).mean()), 6)
        return score
    values = outputs.reshape(len(outputs), -1)[:, 0].astype(np.float64)
    score = {"mean_absolute_error": round(float(np.abs(values - targets).mean()), 6)}
    if reference is not None:
        wanted = reference.reshape(len(reference), -1)[:, 0].astype(np.float64)
        allowed = 0.01 * max(float(wanted.std()), 1e-12) + 1e-6
        if bundle.manifest.variant().recipe != "none":
            allowed = max(allowed, float(np.sqrt(np.mean((wanted - targets) ** 2))))
        score["agreement"] = round(float((np.abs(values - wanted) <= allowed).mean()), 6)
    return score
