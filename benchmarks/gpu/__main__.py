"""`python -m benchmarks.gpu --minutes 8`: everything that only a GPU can prove, in one run. README.md says what.

Needs this checkout, PyTorch 2.11 or newer, onnx, onnxruntime, pynvml, scikit-learn, pandas and pydantic: neither Ray
nor a network. Exit code 0: every step that could run found what it should; 1: one did not; 2: the request is wrong;
3: there is no GPU.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.gpu.findings import load_json
from benchmarks.gpu.plan import ROOT, STEPS
from benchmarks.gpu.runner import Runner, save_report

RESULTS = ROOT / "benchmarks" / "training_gpu"
BAD = ("failed", "wrong")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    names = [step.name for step in STEPS]
    only = options.only.split(",") if options.only else names
    if unknown := [name for name in only if name not in names]:
        return _say(2, f"Cannot run {', '.join(unknown)}: the steps are {', '.join(names)}.")
    if options.device != "cpu" and not _has_gpu():
        return _say(3, "This machine has no CUDA GPU that torch can use; --device cpu is a dry run of the same script.")
    dry = options.device == "cpu"
    out = options.out or (Path(tempfile.mkdtemp(prefix="manta-gpu-dry-")) if dry else RESULTS)
    if dry and (out.resolve() == RESULTS or load_json(out / "result.json").get("dry") is False):
        return _say(2, f"Cannot write a dry run to {out}: a GPU's result lies there. Give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="manta-gpu-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step's processes are ended too
    try:
        runner = Runner(options.device, options.minutes, work, partial(save_report, out))
        report = runner.run([step for step in STEPS if step.name in only])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name, step in report["steps"].items():
        print(f"{name:24} {step['status']:8} {step.get('reason', '')}")
    print(f"{out / 'result.json'}\n{out / 'result.md'}")
    return int(any(step["status"] in BAD for step in report["steps"].values()))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _say(code: int, text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all steps together")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, …; cpu is a dry run with tiny sizes")
    parser.add_argument("--out", type=Path, help="folder of result.json and result.md")
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    return parser


if __name__ == "__main__":
    sys.exit(main())
