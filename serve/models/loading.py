"""From a bundle's folder to a model that may answer: verify, load, warm up, self-check.

Invariant: what is returned has answered the bundle's own sample rows correctly on this machine; on an error
everything that was taken is given back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from cluster.atomic import sha256_file
from cluster.bundle import Bundle, TensorSignature, Variant, open_bundle
from cluster.bundle.independence import EPSILON, ROUNDINGS, measure_independence
from cluster.bundle.manifest import MANIFEST
from cluster.bundle.target import TargetTransform
from cluster.errors import BundleError, EndpointError, MantaError, summary_of
from cluster.probe.gpus import NvmlSource
from cluster.spec.serve import BatchingSpec
from serve.batching.batcher import BatchPolicy
from serve.batching.tuning import ROWS_MAX, choose, measure
from serve.config import EndpointConfig, VersionConfig
from serve.engines import Engine, EngineRequest, make_engine
from serve.engines.process import ProcessEngine
from serve.models.gpu_memory import check_gpu_memory

LOG = logging.getLogger(__name__)
# Largest difference from sample.npz: absolute, and relative to the sample's largest value. fp32 is export's own
# tolerance; the others round differently on each kind of CPU or GPU, and a wrong file is off by far more.
TOLERANCE = {"fp32": (1e-4, 1e-3), "fp16": (1e-3, 2e-2), "bf16": (1e-2, 5e-2), "int8": (1e-2, 5e-2)}
COMPANY_SIZES = (2, 9)  # rows of the batches in which an older bundle's rows are tried
# Of the sample's largest answer, that company may move another row's: on a CPU what the gate allows; a GPU's kernels
# for one row and for many differ by more, and a range taken from the batch by far more still.
COMPANY_MOVES = {"cpu": 1e-5, "gpu": 1e-2}
WHOLE_BATCH_RECIPE = "int8_dynamic"  # in bundles that do not say `rows_independent`: ranges of the whole batch


class Loaded(NamedTuple):
    """A proved engine, what it came from, and how its requests are joined."""

    bundle: Bundle
    variant: Variant
    engine: Engine
    policy: BatchPolicy


def load_engine(config: EndpointConfig, version: VersionConfig) -> Loaded:
    """Load one version and prove it. Blocks; raises BundleError, EndpointError, ResourceError."""
    started = time.perf_counter()
    bundle = open_bundle(version.folder)
    check_manifest(version)
    variant = bundle.variant(version.variant)
    check_gpu_memory(config.device, variant.footprint_bytes, NvmlSource())
    request = EngineRequest(
        path=bundle.path(variant.file),
        signature=bundle.manifest.signature,
        max_rows=_rows_to_load_for(config),
        device=config.device,
        num_threads=config.num_threads,
        model=bundle.manifest.model,
        target=bundle.manifest.target,
        precision=variant.precision,
        tensorrt=config.tensorrt,
    )
    isolated = config.engine_process if config.engine_process is not None else _wants_process(config)
    with _blaming(bundle, variant):
        engine: Engine = (
            ProcessEngine(request, call_timeout_s=config.call_timeout_s) if isolated else make_engine(request)
        )
        try:
            policy = batch_policy(engine, bundle.manifest.signature, config.spec.batching)
            warm_up(engine, bundle.manifest.signature, policy.max_rows)
            check_parity(engine, bundle, variant)
            if not rows_independent(engine, bundle, variant, config.device, policy.max_rows):
                policy = replace(policy, join=False, max_wait_s=0.0)
        except BaseException:
            engine.close()
            raise
    LOG.info("loaded %s version %s in %.2f s", config.name, version.version, time.perf_counter() - started)
    return Loaded(bundle, variant, engine, policy)


@contextmanager
def _blaming(bundle: Bundle, variant: Variant) -> Iterator[None]:
    """What an engine raises while it is proved is the bundle's fault, as one sentence: EndpointError."""
    try:
        yield
    except MantaError:
        raise
    except Exception as error:
        raise EndpointError(
            f"Cannot serve bundle '{bundle.manifest.name}', variant '{variant.name}'",
            found=f"it cannot be run: {summary_of(error)[:500]}",
            rule="a version answers one row and the largest batch before it gets requests",
            remedy="Export the model again, or serve another variant.",
        ) from error


def _rows_to_load_for(config: EndpointConfig) -> int:
    """The largest batch. `auto` measures after loading; a TensorRT profile must hold all that may be measured."""
    if config.spec.batching.max_rows != "auto":
        return config.spec.batching.max_rows
    return 1 if config.tensorrt is None else ROWS_MAX


def _wants_process(config: EndpointConfig) -> bool:
    """On a GPU the engine has a process of its own, but for several streams: a process answers one call at a time."""
    return config.device != "cpu" and (config.tensorrt is None or config.tensorrt.streams == 1)


def check_manifest(version: VersionConfig) -> None:
    """Raise BundleError when the folder holds another bundle than the one that became this version."""
    if version.manifest_sha256 is None:
        return
    found = sha256_file(version.folder / MANIFEST)
    if found != version.manifest_sha256:
        raise BundleError(
            f"Cannot load version {version.version}",
            found=f"{version.folder} was written anew: its manifest hashes to {found[:8]}…, "
            f"it was {version.manifest_sha256[:8]}…",
            rule="a version is one bundle for ever",
            remedy="Deploy the folder again: what it holds now becomes a new version.",
        )


def batch_policy(engine: Engine, signature: TensorSignature, batching: BatchingSpec) -> BatchPolicy:
    """The policy of a spec, each `auto` decided by measuring the engine."""
    rows, wait_ms = batching.max_rows, batching.max_wait_ms
    if rows == "auto" or wait_ms == "auto":
        # an engine may be built for a largest batch: what the spec fixes is not exceeded
        most = ROWS_MAX if rows == "auto" else rows
        curve = measure(lambda size: engine.run(zeros(signature, size)), rows_max=most)
        best_rows, best_wait_s = choose(curve)
        rows = best_rows if rows == "auto" else rows
        wait_ms = best_wait_s * 1e3 if wait_ms == "auto" else wait_ms
        LOG.info("batches of %d rows, %.3f ms wait, from %s", rows, wait_ms, curve)
    workers: int = getattr(engine, "streams", 1)
    return BatchPolicy(max_rows=rows, max_wait_s=wait_ms / 1e3, preferred_rows=engine.preferred_rows, workers=workers)


def warm_up(engine: Engine, signature: TensorSignature, max_rows: int) -> None:
    """One call with one row and one with the largest batch, so that no client pays for first-time work."""
    for rows in dict.fromkeys((1, max_rows)):
        engine.run(zeros(signature, rows))


def zeros(signature: TensorSignature, rows: int) -> dict[str, np.ndarray]:
    """Inputs that fit the signature; axes of free length are 1."""
    found = {}
    for tensor in signature.inputs:
        shape = (rows, *(1 if size == -1 else size for size in tensor.item_shape))
        found[tensor.name] = (
            np.full(shape, b"", object) if tensor.datatype == "BYTES" else np.zeros(shape, tensor.dtype)
        )
    return found


def check_parity(engine: Engine, bundle: Bundle, variant: Variant) -> None:
    """Run the bundle's sample rows and compare with the outputs that were recorded. Raises EndpointError."""
    sample = bundle.sample()
    outputs = engine.run(_sample_inputs(bundle, sample))
    problems = [
        f"output {tensor.name!r} {why}"
        for tensor in bundle.manifest.signature.outputs
        if tensor.name in outputs and (why := tensor.mismatch(outputs[tensor.name])) is not None
    ]
    problems = problems or [
        why
        for tensor in bundle.manifest.signature.outputs
        if (why := _difference(tensor.name, variant, outputs, sample, bundle.manifest.target)) is not None
    ]
    if problems:
        raise EndpointError(
            f"Cannot serve bundle '{bundle.manifest.name}', variant '{variant.name}'",
            found="; ".join(problems),
            rule="the engine must give the outputs that the bundle recorded for its sample rows",
            remedy="Make the bundle again on this kind of machine, or serve another variant.",
        )


def _sample_inputs(bundle: Bundle, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An .npz without pickle holds strings as fixed-width bytes; the protocol's BYTES are objects."""
    return {
        tensor.name: sample[f"inputs/{tensor.name}"].astype(tensor.dtype, copy=False)
        for tensor in bundle.manifest.signature.inputs
    }


def rows_independent(engine: Engine, bundle: Bundle, variant: Variant, device: str, max_rows: int) -> bool:
    """Whether requests of strangers may be joined: by the manifest, else by a trial of the engine here.

    A bundle of an older version has no such entry. Its `int8_dynamic` takes ranges from the whole batch, a known fact;
    of any other variant the sample's rows are run alone and in company.
    """
    if variant.rows_independent is not None:
        why = "" if variant.rows_independent else "its manifest says so"
    elif variant.recipe == WHOLE_BATCH_RECIPE:
        why = f"recipe {WHOLE_BATCH_RECIPE} of a bundle without rows_independent takes ranges from the whole batch"
    else:
        why = _influence(engine, bundle, variant, device, max_rows)
    if why:
        LOG.warning(
            "%s: rows of variant %s change one another's answers (%s): each request is an engine call of its own. "
            "Compress the model again to have requests joined.",
            *(bundle.manifest.name, variant.name, why),
        )
    return not why


def _influence(engine: Engine, bundle: Bundle, variant: Variant, device: str, max_rows: int) -> str:
    """How company moves a sample row's answer beyond rounding; empty where it does not."""
    sizes = tuple(size for size in COMPANY_SIZES if size <= max_rows)
    if not sizes:
        return ""
    inputs = _sample_inputs(bundle, bundle.sample())
    share = COMPANY_MOVES["cpu" if device == "cpu" else "gpu"] + ROUNDINGS * EPSILON[variant.precision]
    outputs = {name: array for name, array in engine.run(inputs).items() if array.dtype.kind == "f"}
    allowed = {name: share * float(np.abs(array).max(initial=0.0)) for name, array in outputs.items()}
    found = measure_independence(lambda rows: engine.run(rows), inputs, allowed, sizes)
    return "" if found.independent else found.sentence()


def _difference(
    name: str,
    variant: Variant,
    outputs: Mapping[str, np.ndarray],
    sample: Mapping[str, np.ndarray],
    target: TargetTransform | None,
) -> str | None:
    want = sample.get(f"outputs/{variant.name}/{name}")
    if want is None:
        return f"the sample has no output {name!r} of variant {variant.name!r}"
    have = outputs.get(name)
    if have is None or have.shape != want.shape:
        return f"output {name!r} has shape {None if have is None else list(have.shape)}, not {list(want.shape)}"
    if want.dtype.kind != "f":
        return None if np.array_equal(have, want.astype(have.dtype)) else f"output {name!r} differs from the sample"
    absolute, relative = TOLERANCE[variant.precision]
    if target is not None and want.size:  # of a quantity: a hundredth of 200,000 ± 3,000 would be no check
        allowed = float(target.allowed(want, absolute, relative).max())
    else:
        allowed = absolute + relative * float(np.abs(want).max(initial=0.0))
    largest = float(np.abs(have.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))
    return None if largest <= allowed else f"output {name!r} is off by {largest:.3g}, allowed is {allowed:.3g}"
