"""`manta compress SOURCE`: any bundle, or a bare ONNX file with a data set, through the graph recipes and the gate.

Invariant: the source is never changed; the result is a new bundle, whole or not there at all.

Covered: graph recipes. Not covered: recipes that train (they need the run's spec and training rows: `manta run`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cluster.atomic import write_json
from cluster.bundle.files import MANIFEST, SAMPLE, finish_bundle, open_bundle, write_bundle
from cluster.bundle.manifest import BundleManifest, Variant
from cluster.bundle.signature import DATATYPE_OF, TensorSignature, TensorSpec
from cluster.errors import BundleError, DataError, RequestError
from cluster.spec.compress import TRAINING, CompressSpec
from cluster.telemetry.events import EventSink
from trainers.compress.judge import make_baseline, predict_graph
from trainers.compress.ladder import BASELINE, Ladder, Parent
from trainers.compress.outcome import accepted_of, best_of, compression_facts, headline
from trainers.compress.rows import rows_of
from trainers.data.shards import DATASET, PreparedData, Split, open_prepared, write_prepared
from trainers.export.bundle import copy_graph, versions, write_sample
from trainers.export.graph_file import check_file, check_untrusted, graph_inputs

FLOAT_GRAPH = "model.onnx"
CALIBRATION_SHARE = 0.2
CALIBRATION_ROWS_MAX = 512
SPLIT_SEED = 7
SAMPLE_ROWS = 7


@dataclass(frozen=True)
class Source:
    """What is compressed."""

    name: str
    graph: Path
    manifest: BundleManifest | None
    """None for a bare ONNX file."""
    folder: Path


def compress_source(
    source: Path, data: Path | None, out: Path, spec: CompressSpec, events: EventSink
) -> dict[str, Any]:
    """Compress and write the bundle `out`. Returns the facts. Raises MantaError."""
    if training := TRAINING & set(spec.recipes):
        raise RequestError(
            f"Cannot compress {source} by {', '.join(sorted(training))}",
            found="these recipes train",
            rule="they need the run's spec and its training rows",
            remedy="Put them into compress.recipes of the YAML and use 'manta run'.",
        )
    opened = open_source(source)
    with tempfile.TemporaryDirectory(prefix="manta-compress-") as scratch:
        prepared = open_data(opened, data, Path(scratch))
        rows = rows_of(prepared, calibration_rows=spec.calibration_rows)
        baseline = make_baseline(opened.graph, rows)
        ladder = Ladder(spec, rows, prepared.folder, baseline, Path(scratch) / "trials", events)
        ladder.climb(Parent(BASELINE, opened.graph))
        chosen = best_of(ladder)
        facts = compression_facts(ladder, chosen)
        _write(out, opened, prepared, ladder, facts)
        return {**facts, "headline": headline(ladder, chosen), "bundle": str(out)}


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
        return Source(bundle.manifest.name, bundle.path(floats[0].file), bundle.manifest, source)
    check_untrusted(source)
    check_file(source)
    return Source(source.stem, source, None, source.parent)


def open_data(source: Source, data: Path | None, scratch: Path) -> PreparedData:
    """The rows: a prepared folder, an `.npz` with the graph's inputs and `targets`, or the bundle's own run's."""
    if data is None:
        data = source.folder.parent / "stages" / "prepare"
        if not (data / DATASET).exists():
            raise DataError(
                f"Cannot compress {source.name}",
                found="no data was given, and the bundle does not lie in its run's folder",
                rule="candidates are calibrated and judged on real rows",
                remedy="Give --data: a prepared folder (runs/NAME/stages/prepare), or an .npz with inputs and targets.",
            )
    if data.is_dir():
        return open_prepared(data)
    arrays, targets, signature = _read_npz(source, data)
    classification = not np.issubdtype(targets.dtype, np.floating)
    classes = _classes_of(source, arrays, targets) if classification else ()
    target = targets.astype(np.int64 if classification else np.float32)
    write_prepared(
        scratch / "rows",
        _split(arrays, target, classification),
        task="classification" if classification else "regression",
        classes=classes,
        inputs=signature,
    )
    return open_prepared(scratch / "rows")


def _read_npz(source: Source, data: Path) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[TensorSpec, ...]]:
    attempted = f"Cannot read the rows {data}"
    try:
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(attempted, found=str(error), rule="give an .npz of plain arrays") from None
    names = [value.name for value in graph_inputs(onnx.load(str(source.graph), load_external_data=False))]
    missing = [name for name in (*names, "targets") if name not in arrays]
    if missing:
        raise DataError(
            attempted,
            found=f"it has {', '.join(sorted(arrays)) or 'no arrays'}",
            rule=f"it needs {', '.join((*names, 'targets'))}",
            remedy=f"Add {', '.join(missing)}.",
        )
    targets = arrays["targets"]
    lengths = {name: len(arrays[name]) for name in (*names, "targets")}
    if len(set(lengths.values())) > 1:
        raise DataError(attempted, found=f"numbers of rows differ: {lengths}", rule="one target for each row")
    return {name: arrays[name] for name in names}, targets, _signature_of(source, {n: arrays[n] for n in names})


def _classes_of(source: Source, arrays: dict[str, np.ndarray], targets: np.ndarray) -> tuple[str, ...]:
    """One label for each output. Raises DataError for targets that are no outputs, ModelError for a wrong shape."""
    width = predict_graph(source.graph, {name: array[:1] for name, array in arrays.items()}).shape[-1]
    lowest, highest = int(targets.min(initial=0)), int(targets.max(initial=0))
    if lowest < 0 or highest >= width:
        raise DataError(
            "Cannot compress with these rows",
            found=f"targets go from {lowest} to {highest}",
            rule=f"the graph has {width} outputs, so a class is a number from 0 to {width - 1}",
            remedy="Give targets as indices of the graph's outputs.",
        )
    return source.manifest.classes if source.manifest else tuple(str(label) for label in range(width))


def _signature_of(source: Source, arrays: dict[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    if source.manifest is not None:
        source.manifest.signature.check_inputs(arrays)
        return source.manifest.signature.inputs
    return tuple(
        TensorSpec.model_validate({"name": name, "datatype": DATATYPE_OF[array.dtype], "shape": (-1, *array.shape[1:])})
        for name, array in arrays.items()
    )


def _split(arrays: dict[str, np.ndarray], targets: np.ndarray, stratify: bool) -> dict[str, Split]:
    """A stratified share for calibration, the rest for the gate."""
    from sklearn.model_selection import train_test_split

    rows = len(targets)
    calibration = min(CALIBRATION_ROWS_MAX, max(1, int(rows * CALIBRATION_SHARE)))
    if rows < 2 or (stratify and np.bincount(targets).max() == rows):
        raise DataError(
            "Cannot split the rows", found=f"{rows} rows of {len(np.unique(targets))} class(es)",
            rule="calibration and gate both need rows, of more than one class", remedy="Give more rows.",
        )  # fmt: skip
    enough = (
        stratify and np.unique(targets, return_counts=True)[1].min() >= 2 and calibration >= len(np.unique(targets))
    )
    gate, held = train_test_split(
        np.arange(rows), test_size=calibration, random_state=SPLIT_SEED, stratify=targets if enough else None
    )
    chosen = {"gate": np.sort(gate), "calibration": np.sort(held)}
    return {
        name: Split({key: array[index] for key, array in arrays.items()}, targets[index])
        for name, index in chosen.items()
    }


def _write(out: Path, source: Source, prepared: PreparedData, ladder: Ladder, facts: dict[str, Any]) -> None:
    variants = tuple(Variant.model_validate({**item}) for item in facts["variants"])
    with write_bundle(out) as folder:
        if source.manifest is not None:
            _copy_rest(source, folder)
        with _named(source.graph, FLOAT_GRAPH) as graph:
            copy_graph(graph, folder)
        for judgment in accepted_of(ladder):
            assert judgment.path is not None, "an accepted candidate has a file"
            shutil.copyfile(judgment.path, folder / judgment.variant().file)
        write_sample(
            folder, variants, {name: np.array(array[:SAMPLE_ROWS]) for name, array in ladder.rows.gate.items()}
        )
        evidence = folder / "evidence"
        evidence.mkdir(exist_ok=True)
        write_json(evidence / "compress.json", facts)
        finish_bundle(folder, _manifest(source, prepared, variants, facts, ladder))


@contextmanager
def _named(graph: Path, name: str) -> Iterator[Path]:
    """The graph under another file name, without changing its folder."""
    with tempfile.TemporaryDirectory(prefix="manta-named-") as scratch:
        copy_graph(graph, Path(scratch))
        target = Path(scratch) / name
        if graph.name != name:
            (Path(scratch) / graph.name).rename(target)
        yield target


def _copy_rest(source: Source, folder: Path) -> None:
    assert source.manifest is not None, "only a bundle has other files"
    graphs = {variant.file for variant in source.manifest.variants}
    for name in source.manifest.files:
        if name not in graphs and name not in (SAMPLE, MANIFEST):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.folder / name, folder / name)


def _manifest(
    source: Source, prepared: PreparedData, variants: tuple[Variant, ...], facts: dict[str, Any], ladder: Ladder
) -> BundleManifest:
    if source.manifest is not None:
        return source.manifest.model_copy(
            update={
                "variants": variants,
                "default_variant": facts["chosen"],
                "created_unix_s": time.time(),
                "metrics": {},
            }
        )
    output = onnx.load(str(source.graph), load_external_data=False).graph.output[0].name
    width = int(ladder.baseline.outputs.shape[1])
    outputs = (TensorSpec(name=output, datatype="FP32", shape=(-1, width)),)
    return BundleManifest(
        name=source.name,
        created_unix_s=time.time(),
        task=prepared.task,
        classes=prepared.classes,
        signature=TensorSignature(inputs=prepared.inputs, outputs=outputs),
        variants=variants,
        default_variant=facts["chosen"],
        model={},
        source={"onnx": source.graph.name, "versions": versions()},
        files={},
    )
