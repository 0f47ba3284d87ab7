"""What the engine's and the endpoint's steps share: a bundle whose only variant is the torch module, and its answers.

The answers are those of the same module on the CPU in float64.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.findings import Context
from cluster.bundle import BundleManifest, TensorSignature, TensorSpec, Variant, finish_bundle, write_bundle
from cluster.spec.model import CnnSpec

SHAPE, CLASSES, ROWS = (3, 32, 32), 10, 256
SIGNATURE = TensorSignature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *SHAPE)),),
    outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, CLASSES)),),
)
CLOSE = 1e-2
"""Of the largest logit: a GPU's convolutions round float32 to TF32's 10 bits unless told otherwise."""


def torch_bundle(context: Context) -> tuple[Path, np.ndarray, np.ndarray]:
    """(bundle, rows, their logits); made once, then found again by the next step."""
    from safetensors.torch import save_file

    from trainers.models import build_model

    spec = CnnSpec(family="cnn", width=4 if context.dry else 64, stages=2 if context.dry else 3)
    torch.manual_seed(0)
    module = build_model(spec, SIGNATURE.inputs, CLASSES).eval()
    rows = np.random.default_rng(0).standard_normal((ROWS, *SHAPE)).astype(np.float32)
    with torch.inference_mode():
        logits = module.double()(torch.from_numpy(rows).double()).float().numpy()
    folder = context.work / "served"
    if folder.exists():
        return folder, rows, logits
    with write_bundle(folder) as partial:
        save_file(module.float().state_dict(), partial / "weights.safetensors")
        np.savez(partial / "sample.npz", **{"inputs/x": rows[:4], "outputs/fp32/logits": logits[:4]})
        finish_bundle(
            partial,
            BundleManifest(
                name="gpu",
                created_unix_s=time.time(),
                task="classification",
                classes=tuple(map(str, range(CLASSES))),
                signature=SIGNATURE,
                variants=(Variant(name="fp32", file="weights.safetensors", precision="fp32"),),
                default_variant="fp32",
                model=spec.model_dump(mode="json"),
                files={},
            ),
        )
    return folder, rows, logits


def off(answers: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest logit."""
    return float(np.abs(answers.astype(np.float64) - expected).max() / np.abs(expected).max())
