"""The export stage: what was trained and accepted becomes a bundle.

Files of the stage: none of its own; the bundle goes to the run's `bundle/`, as a whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from cluster.atomic import write_json
from cluster.bundle.files import TRANSFORMS, WEIGHTS, finish_bundle, open_bundle, write_bundle
from cluster.bundle.manifest import BundleManifest, FileRecord, Variant
from cluster.bundle.signature import TensorSignature, TensorSpec
from cluster.bundle.transforms import load_transforms
from cluster.pipeline.stage import StageContext, StageResult
from cluster.store.stage_facts import CompressFacts, EvaluateFacts, ExportFacts
from trainers.data.shards import PreparedData, open_prepared
from trainers.export.bundle import FLOAT_GRAPH, FLOAT_VARIANT, copy_graph, versions, write_sample
from trainers.export.engine_memory import with_footprint
from trainers.export.float_graph import real_rows, write_float_graph
from trainers.export.fuse import Fusion, fuse_graph, plan_fusion
from trainers.export.graph_file import file_bytes
from trainers.export.independence import SPREAD_ROWS, float_answers, graph_independence

EVIDENCE = "evidence"
OUTPUT = "logits"
ORIGINS = ("weights.*.safetensors", "plan.*.json", "network.*.json")


def run_export(context: StageContext) -> StageResult:
    """Pack the accepted graphs, the weights, the transforms and the evidence into the run's bundle."""
    prepared = open_prepared(context.files("prepare"))
    compressed = context.facts(CompressFacts)
    graphs = context.files("compress")
    if compressed is None:  # only the float graph is served
        context.progress(0, text="exporting the float graph")
        exported = write_float_graph(context.run_resolved.spec, prepared, context.files("train"), context.folder)
        rows, graph = real_rows(prepared, SPREAD_ROWS), context.folder / FLOAT_GRAPH
        alone = graph_independence(graph, rows, float_answers(graph, rows))
        float_variant = Variant(
            name=FLOAT_VARIANT, file=FLOAT_GRAPH, precision="fp32", rows_independent=alone.independent
        )
        compressed = CompressFacts(
            chosen=FLOAT_VARIANT,
            variants=(float_variant,),
            parity=exported["parity"],
            baseline={"independence": alone.to_dict()},
        )
        graphs = context.folder
    context.progress(1, text="packing the bundle")
    manifest = _pack(context, prepared, compressed, graphs)
    open_bundle(context.run.bundle)  # reads every byte back
    sizes = {one.name: file_bytes(context.run.bundle / one.file) for one in manifest.variants}
    facts = ExportFacts(
        bundle="bundle", default_variant=manifest.default_variant, parity=compressed.parity, size_bytes=sizes
    )
    return StageResult(facts=facts, headline=_headline(manifest, sizes))


def _pack(context: StageContext, prepared: PreparedData, compressed: CompressFacts, graphs: Path) -> BundleManifest:
    variants = compressed.variants
    with write_bundle(context.run.bundle) as folder:
        for variant in variants:
            copy_graph(graphs / variant.file, folder / variant.file)
        shutil.copyfile(context.files("train") / WEIGHTS, folder / WEIGHTS)
        for origin in (path for pattern in ORIGINS for path in graphs.glob(pattern)):
            shutil.copyfile(origin, folder / origin.name)
        transforms = context.files("prepare") / TRANSFORMS
        if transforms.exists():
            shutil.copyfile(transforms, folder / TRANSFORMS)
        fusion = _fuse(context, prepared, variants, folder)
        rows = real_rows(prepared)
        write_sample(folder, variants, fusion.raw(rows) if fusion else rows)
        _write_evidence(folder / EVIDENCE, context, compressed)
        manifest = _manifest(context, prepared, variants, compressed, fusion)
        return finish_bundle(folder, _with_memory(context, manifest, folder))


def _with_memory(context: StageContext, manifest: BundleManifest, folder: Path) -> BundleManifest:
    """The manifest with the default variant's device memory, where an engine will serve it and can be built here."""
    serve = context.run_resolved.spec.serve
    if serve is None or serve.engine != "tensorrt":
        return manifest
    context.progress(1, text="building the engine, to read its memory")
    served = manifest.variant()
    measured, evidence = with_footprint(served, folder / served.file, manifest.signature, serve)
    write_json(folder / EVIDENCE / "tensorrt.json", evidence)
    variants = tuple(measured if one == served else one for one in manifest.variants)
    return manifest.model_copy(update={"variants": variants})


def _fuse(context: StageContext, prepared: PreparedData, variants: tuple[Variant, ...], folder: Path) -> Fusion | None:
    """Put what `export.fuse` names around every variant's graph; transforms.json then leaves it out."""
    spec = context.run_resolved.spec.export
    path = folder / TRANSFORMS
    transforms = load_transforms(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    fusion = plan_fusion(spec.fuse, classes=prepared.classes, transforms=transforms, target=prepared.target)
    if fusion is None:
        return None
    for variant in variants:
        fuse_graph(folder / variant.file, fusion, real_rows(prepared), spec.parity, exact=variant.precision == "fp32")
    if (left := fusion.served_transforms()) is not None:
        write_json(path, left.to_json())
    return fusion


def _manifest(
    context: StageContext,
    prepared: PreparedData,
    variants: tuple[Variant, ...],
    compressed: CompressFacts,
    fusion: Fusion | None,
) -> BundleManifest:
    run = context.run_resolved
    logits = TensorSpec(name=OUTPUT, datatype="FP32", shape=(-1, prepared.num_outputs))
    outputs = (logits, *(fusion.outputs if fusion else ()))
    tested = compressed.test["metrics"] if compressed.test else _evaluated(context).metrics
    metrics = {f"test.{name}": float(value) for name, value in tested.items()}
    return BundleManifest(
        name=run.name,
        created_unix_s=time.time(),
        task=prepared.task,
        classes=prepared.classes,
        signature=TensorSignature(inputs=prepared.inputs, outputs=outputs),
        target=prepared.target,
        variants=variants,
        default_variant=compressed.chosen,
        model=run.spec.model.model_dump(mode="json"),
        metrics=metrics,
        source={
            "run": run.name,
            "data_digest": run.data.source_digest,
            "versions": versions(),
            "fused": list(run.spec.export.fuse),
        },
        files=dict[str, FileRecord](),
    )


def _write_evidence(folder: Path, context: StageContext, compressed: CompressFacts) -> None:
    folder.mkdir()
    write_json(folder / "evaluate.json", _evaluated(context).to_json())
    write_json(folder / "compress.json", compressed.to_json())
    write_json(folder / "parity.json", compressed.parity)


def _evaluated(context: StageContext) -> EvaluateFacts:
    facts = context.facts(EvaluateFacts)
    assert facts is not None, "a bundle is packed after its network was evaluated"
    return facts


def _headline(manifest: BundleManifest, sizes: dict[str, int]) -> str:
    listed = ", ".join(f"{name} {size / 1024:,.0f} KiB" for name, size in sizes.items())
    alone = "" if manifest.variant().rows_independent else "; its rows change one another's answers: none are joined"
    return f"bundle with {listed}; serves {manifest.default_variant}{alone}"
