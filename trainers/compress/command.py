"""`manta compress SOURCE`: any bundle, or a bare ONNX file with a data set, through the graph recipes and the gate.

Invariant: the source is never changed; the result is a new bundle, whole or not there at all.

Covered: graph recipes. Not covered: recipes that train (they need the run's spec and training rows: `manta run`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cluster.atomic import write_json
from cluster.bundle.files import MANIFEST, SAMPLE, finish_bundle, open_bundle, write_bundle
from cluster.bundle.manifest import BundleManifest, Variant
from cluster.bundle.signature import TensorSignature, TensorSpec
from cluster.errors import BundleError, MantaError, RequestError
from cluster.spec.compress import TRAINING, CompressSpec
from cluster.store.stage_facts import CompressFacts
from cluster.telemetry.events import EventSink
from trainers.compress.data_files import Source, open_data
from trainers.compress.decision import choose_best
from trainers.compress.evidence import compression_facts, copy_accepted, headline
from trainers.compress.measure import measure_baseline
from trainers.compress.recipe_search import RecipeSearch
from trainers.compress.rows import rows_of
from trainers.data.shards import PreparedData
from trainers.export.bundle import FLOAT_GRAPH, copy_graph, versions, write_sample
from trainers.export.graph_file import check_file, check_untrusted

TRIALS = ".trials"
SAMPLE_ROWS = 7


def compress_source(
    source: Path, data: Path | None, out: Path, spec: CompressSpec, events: EventSink, *, target: str | None = None
) -> dict[str, Any]:
    """Compress and write the bundle `out`. Returns the facts. Raises MantaError.

    Args:
        target: column with the answers, where `data` is a table.
    """
    if training := TRAINING & set(spec.recipes):
        raise RequestError(
            f"Cannot compress {source} by {', '.join(sorted(training))}",
            found="these recipes train",
            rule="they need the run's spec and its training rows",
            remedy="Put them into compress.recipes of the YAML and use 'manta run'.",
        )
    opened = open_source(source)
    _check_out(source, out)
    with _workplace(out) as folder:
        prepared = open_data(opened, data, folder / "rows", target)
        rows = rows_of(prepared, calibration_rows=spec.calibration_rows)
        baseline = measure_baseline(opened.graph, rows)
        search = RecipeSearch(spec, rows, prepared.folder, baseline, folder / "trials", events)
        search.try_graph_recipes(baseline)
        chosen = choose_best(search.candidates, spec)
        facts = compression_facts(search, chosen)
        _write(out, opened, prepared, search, facts)
        return {**facts.to_json(), "headline": headline(search, chosen), "bundle": str(out)}


def _check_out(source: Path, out: Path) -> None:
    """A folder that this command did not write is never replaced, nor is the source. Raises RequestError."""
    place = out.resolve()
    if place == source.resolve() or place in source.resolve().parents:
        found = "it is the source, or holds it"
    elif place.exists() and not (place / MANIFEST).is_file() and not (place.is_dir() and not any(place.iterdir())):
        found = "there is something else than a bundle"
    else:
        return
    raise RequestError(
        f"Cannot write the bundle {out}",
        found=found,
        rule="--out is a new folder, or a bundle that may be replaced",
        remedy="Give another --out.",
    )


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """`OUT.trials`: rows and finished tasks. A command that is killed leaves it, and the same command goes on there;
    one that ends, well or with an error of ours, removes it."""
    place = out.resolve()
    folder = place.with_name(f"{place.name}{TRIALS}")
    shutil.rmtree(folder / "rows", ignore_errors=True)
    try:
        yield folder
    except MantaError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def open_source(source: Path) -> Source:
    """A verified bundle's float graph, or a checked ONNX file. Raises BundleError, ModelError."""
    if source.is_dir():
        bundle = open_bundle(source)
        floats = [one for one in bundle.manifest.variants if one.precision == "fp32"]
        if not floats:
            raise BundleError(
                f"Cannot compress the bundle {source}",
                found="it has no fp32 variant",
                rule="compression starts from the float graph",
                remedy="Give the bundle that was exported first.",
            )
        if fused := bundle.manifest.source.get("fused"):
            raise BundleError(
                f"Cannot compress the bundle {source}",
                found=f"its graph holds {', '.join(fused)} (export.fuse)",
                rule="compression calibrates and judges the network itself, on prepared rows",
                remedy="Compress in the run (compress.recipes), which fuses last; or export with an empty export.fuse.",
            )
        graph = bundle.path(floats[0].file)
        check_untrusted(graph)  # its hashes are right, which an attacker can see to
        return Source(bundle.manifest.name, graph, bundle.manifest, source)
    check_untrusted(source)
    check_file(source)
    return Source(source.stem, source, None, source.parent)


def _write(out: Path, source: Source, prepared: PreparedData, search: RecipeSearch, facts: CompressFacts) -> None:
    variants = facts.variants
    with write_bundle(out) as folder:
        if source.manifest is not None:
            _copy_rest(source, folder)
        copy_graph(source.graph, folder / FLOAT_GRAPH)
        copy_accepted(search.candidates, folder)
        write_sample(
            folder, variants, {name: np.array(array[:SAMPLE_ROWS]) for name, array in search.rows.gate.items()}
        )
        evidence = folder / "evidence"
        evidence.mkdir(exist_ok=True)
        write_json(evidence / "compress.json", facts.to_json())
        finish_bundle(folder, _manifest(source, prepared, variants, facts, search))


def _copy_rest(source: Source, folder: Path) -> None:
    assert source.manifest is not None, "only a bundle has other files"
    graphs = {variant.file for variant in source.manifest.variants}
    for name in source.manifest.files:
        if name not in graphs and name not in (SAMPLE, MANIFEST):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / name, folder / name)


def _manifest(
    source: Source, prepared: PreparedData, variants: tuple[Variant, ...], facts: CompressFacts, search: RecipeSearch
) -> BundleManifest:
    if source.manifest is not None:
        return source.manifest.model_copy(
            update={
                "variants": variants,
                "default_variant": facts.chosen,
                "created_unix_s": time.time(),
                "metrics": {},
            }
        )
    output = onnx.load(str(source.graph), load_external_data=False).graph.output[0].name
    width = int(search.baseline.outputs.shape[1])
    outputs = (TensorSpec(name=output, datatype="FP32", shape=(-1, width)),)
    return BundleManifest(
        name=source.name,
        created_unix_s=time.time(),
        task=prepared.task,
        classes=prepared.classes,
        signature=TensorSignature(inputs=prepared.inputs, outputs=outputs),
        variants=variants,
        default_variant=facts.chosen,
        model={},
        source={"onnx": source.graph.name, "versions": versions()},
        files={},
    )
