"""`python -m serve.footprint BUNDLE --device cuda:0`: measure what each variant holds, and write it into the bundle.

Run it once on the kind of GPU that will serve; placement (serve/deployments/placement.py) then packs replicas by it.
What is measured: the fall of the GPU's free memory from before a process of its own loads the engine until after a
call with the largest batch (weights, workspace, activations), less the driver's own part; or what the engine says,
where that is more.

Invariant: only `footprint_bytes` of the manifest changes; a bundle whose engine fails is left as it was.
Not covered: a GPU on which others allocate meanwhile (the fall would be theirs too).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.atomic import write_text
from cluster.bundle import Bundle, Variant, open_bundle
from cluster.bundle.manifest import MANIFEST
from cluster.command import run_main
from cluster.errors import RequestError
from cluster.probe.gpus import GpuSource, NvmlSource
from serve.engines.engine import EngineRequest
from serve.engines.process import ProcessEngine
from serve.models.gpu_memory import CONTEXT_BYTES, GIB, find_gpu
from serve.models.loading import warm_up


def main(arguments: list[str] | None = None) -> int:
    """Measure and write. Returns the exit code."""
    return run_main(_measure, arguments)


def _measure(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m serve.footprint", description=__doc__, allow_abbrev=False)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--max-rows", type=int, default=64, help="rows of the largest batch: serve.batching.max_rows")
    options = parser.parse_args(arguments)
    for name, size_bytes in measure_bundle(options.bundle, options.device, options.max_rows).items():
        sys.stdout.write(f"{name}: {size_bytes / GIB:.3f} GiB\n")
    return 0


def measure_bundle(folder: Path, device: str, max_rows: int, source: GpuSource | None = None) -> dict[str, int]:
    """Measure every variant on a GPU and write the manifest. Raises RequestError, BundleError, EndpointError."""
    if not device.startswith("cuda"):
        raise RequestError("Cannot measure a footprint", found=f"the device is {device!r}", rule="a GPU: cuda:0, …")
    bundle = open_bundle(folder)
    found = {
        variant.name: measure(bundle, variant, device, max_rows, source or NvmlSource())
        for variant in bundle.manifest.variants
    }
    variants = tuple(v.model_copy(update={"footprint_bytes": found[v.name]}) for v in bundle.manifest.variants)
    manifest = bundle.manifest.model_copy(update={"variants": variants})
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return found


def measure(bundle: Bundle, variant: Variant, device: str, max_rows: int, source: GpuSource) -> int:
    """Bytes that one variant holds on the device at its largest batch. Blocks."""
    request = EngineRequest(
        path=bundle.path(variant.file),
        signature=bundle.manifest.signature,
        max_rows=max_rows,
        device=device,
        model=bundle.manifest.model,
        target=bundle.manifest.target,
        precision=variant.precision,
    )
    before = _free_bytes(device, source)
    engine = ProcessEngine(request)
    try:
        warm_up(engine, bundle.manifest.signature, max_rows)
        after = _free_bytes(device, source)
        told = engine.footprint_bytes() or 0
    finally:
        engine.close()
    fall = before - after - CONTEXT_BYTES if before is not None and after is not None else 0
    if max(fall, told) <= 0:
        raise RequestError(
            f"Cannot measure variant '{variant.name}'",
            found="neither NVML nor the engine reports what it holds",
            remedy="See 'manta probe' for why; without a footprint each replica gets a GPU of its own.",
        )
    return max(fall, told)


def _free_bytes(device: str, source: GpuSource) -> int | None:
    gpu = find_gpu(device, source)
    return gpu.memory_free_bytes if gpu is not None else None


if __name__ == "__main__":
    sys.exit(main())
