"""An exported float graph against the module that it was made from, on the device: in float32 as it is written, with
TF32, under autocast, and in ONNX Runtime's own CUDA provider with TF32 and without.

The reference is what ONNX Runtime answers for the graph on the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.findings import Context, Findings
from benchmarks.gpu.steps.served import off
from benchmarks.training_gpu import networks
from cluster.bundle.signature import TensorSpec

ALLOWED = {"float32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}
"""Of the largest logit. float32: export's own; fp16 and bf16: of the gate's variants; TF32 has fp16's mantissa."""
ROWS = 8


def run(context: Context, findings: Findings) -> None:
    device = torch.device(context.device)
    for name in ("resnet50",) if context.dry else ("resnet50", "bert_base"):
        module, tensor, rows = _case(name, context)
        path = context.work / f"{name}.onnx"
        expected = export_and_answer(module, tensor, rows, path)
        inputs = torch.from_numpy(rows).to(device)
        module = module.to(device)
        for mode in ALLOWED:
            with torch.inference_mode(), numerics(mode, device):
                answers = module(inputs).float().cpu().numpy()
            worst = off(answers, expected)
            findings.put(f"{name}_torch_{mode}", ok=worst <= ALLOWED[mode], worst=worst, allowed=ALLOWED[mode])
        for mode in ("float32", "tf32"):
            _in_onnxruntime(f"{name}_onnxruntime_{mode}", mode, path, rows, expected, context, findings)


def _case(name: str, context: Context) -> tuple[nn.Module, TensorSpec, np.ndarray]:
    torch.manual_seed(0)
    scale = {"resnet50": 16, "bert_base": 12}[name] if context.dry else 1
    module = getattr(networks, f"build_{name}")(scale).eval()
    rng = np.random.default_rng(0)
    if name == "resnet50":
        side = networks.IMAGE // (4 if context.dry else 1)
        rows = rng.standard_normal((ROWS, 3, side, side), dtype=np.float32)
        return module, TensorSpec(name="x", datatype="FP32", shape=(-1, 3, side, side)), rows
    rows = rng.integers(0, networks.VOCABULARY, (ROWS, networks.TOKENS))
    return module, TensorSpec(name="x", datatype="INT64", shape=(-1, networks.TOKENS)), rows


def export_and_answer(module: nn.Module, tensor: TensorSpec, rows: np.ndarray, path: Path) -> np.ndarray:
    from trainers.export.onnx import export_onnx
    from trainers.export.session import open_session, run_batches

    export_onnx(module, (tensor,), {"x": rows[:2]}, path, opset=20)
    return run_batches(open_session(path), {"x": rows})["logits"]


@contextmanager
def numerics(mode: str, device: torch.device) -> Iterator[None]:
    """float32 and tf32 set torch's two switches, which are put back; the others are autocast."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = mode == "tf32"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mode)
    try:
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _in_onnxruntime(
    name: str, mode: str, path: Path, rows: np.ndarray, expected: np.ndarray, context: Context, findings: Findings
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        findings.skip(name, "this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)")
        return
    index = torch.device(context.device).index or 0
    options = {"device_id": str(index), "use_tf32": str(int(mode == "tf32"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = onnxruntime.InferenceSession(str(path), providers=[("CUDAExecutionProvider", options)])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        findings.put(name, ok=False, error=f"the session runs on {session.get_providers()}")
        return
    worst = off(session.run(None, {"x": rows})[0], expected)
    findings.put(name, ok=worst <= ALLOWED[mode], worst=worst, allowed=ALLOWED[mode])
