"""Which steps there are, in which order, with which share of the time.

A step is a function `run(context, findings)` in a process of its own. What it needs beside torch is listed; where that
is missing the step is skipped with the reason. Time that a step leaves over goes to those after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS_AT = "benchmarks.gpu.steps"


@dataclass(frozen=True)
class Step:
    """One child process."""

    name: str
    function: str
    """`module:function`."""
    share: float
    """Of the time that is left, against the shares of the steps after it."""
    question: str
    needs: tuple[str, ...] = ()
    """Modules beside torch and numpy."""
    arguments: tuple[str, ...] = ()


def training(case: str, question: str) -> Step:
    return Step(f"training_{case}", f"{STEPS_AT}.training:run", 12, question, ("sklearn", "pandas"), (case,))


STEPS = (
    Step("device", f"{STEPS_AT}.device:run", 2, "Which device, driver and versions?", ("pynvml",)),
    Step("readings", f"{STEPS_AT}.readings:run", 2, "Does NVML say what nvidia-smi says?", ("pynvml",)),
    Step("memory", f"{STEPS_AT}.memory:run", 5, "Is the estimate of `manta explain` within 10 % of the peak?"),
    Step("batch", f"{STEPS_AT}.batch:run", 6, "Does the batch finder come within 5 % of the true limit?"),
    Step("resume", f"{STEPS_AT}.resume:run", 6, "Does a resumed run end with the same bytes?", ("safetensors",)),
    training("resnet50_bf16", "Is our loop as fast as a hand-written one on ResNet-50 in bf16?"),
    training("bert_base_bf16", "… on BERT-base in bf16?"),
    training("resnet50_fp16", "… on ResNet-50 in fp16?"),
    training("bert_base_fp16", "… on BERT-base in fp16?"),
    Step(
        "engine", f"{STEPS_AT}.engine:run", 3, "Does the torch engine answer right under the batcher?", ("safetensors",)
    ),
    Step(
        "endpoint",
        f"{STEPS_AT}.endpoint:run",
        5,
        "Does `python -m serve` on the device answer right under load?",
        ("safetensors", "uvicorn", "fastapi", "orjson", "psutil", "yaml", "prometheus_client", "jinja2"),
    ),
    Step(
        "graphs",
        f"{STEPS_AT}.graphs:run",
        5,
        "How far are TF32, bf16 and fp16 on the device from the exported graph?",
        ("onnx", "onnxruntime", "onnxscript"),
    ),
    Step("tests", f"{STEPS_AT}.tests:run", 14, "Do the tests marked `gpu` pass?", ("pytest", "onnx", "onnxruntime")),
)
