"""Parts of a bundle that export and `manta compress` both write. Never imports torch."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from cluster.bundle.files import SAMPLE
from cluster.bundle.manifest import Variant
from trainers.export.graph_file import all_tensors, external_files
from trainers.export.session import open_session, run_batches

FLOAT_GRAPH = "model.onnx"
FLOAT_VARIANT = "fp32"


def copy_graph(source: Path, target: Path) -> None:
    """Copy an ONNX file with its external data; under another name, its data gets a name of its own beside it."""
    model = onnx.load(str(source), load_external_data=False)
    names = {name: name for name in sorted(external_files(model))}
    if target.name != source.name:
        names = {name: f"{target.name}.{number}.data" for number, name in enumerate(names)}
    for name, copied in names.items():
        shutil.copyfile(source.parent / name, target.parent / copied)
    if all(name == copied for name, copied in names.items()):
        shutil.copyfile(source, target)
        return
    for entry in (entry for tensor in all_tensors(model) for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = names[entry.value]
    target.write_bytes(model.SerializeToString())


def write_sample(folder: Path, variants: tuple[Variant, ...], rows: dict[str, np.ndarray]) -> None:
    """`sample.npz`: real rows and what each variant answers, for the check when a bundle is loaded."""
    arrays = {f"inputs/{name}": array for name, array in rows.items()}
    for variant in variants:
        for output, values in run_batches(_session(folder, variant), rows).items():
            # an .npz without pickle holds texts as fixed-width bytes, not as objects
            texts = values.dtype == object
            arrays[f"outputs/{variant.name}/{output}"] = np.array([t.encode() for t in values]) if texts else values
    np.savez(folder / SAMPLE, **arrays)  # type: ignore[arg-type]


def _session(folder: Path, variant: Variant) -> ort.InferenceSession:
    """BF16 runs on no CPU; everything else is sampled where every host can repeat it."""
    return open_session(folder / variant.file, device="gpu" if variant.precision == "bf16" else "cpu")


def versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "onnx": onnx.__version__,
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }
