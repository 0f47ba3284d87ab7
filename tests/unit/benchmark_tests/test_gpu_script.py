"""`python -m benchmarks.gpu`, dry on a CPU: deadlines, what is kept, where it writes, every step with tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import RESULTS, main
from benchmarks.gpu.child import run_step
from benchmarks.gpu.findings import Context, Findings, load_json
from benchmarks.gpu.plan import ROOT, STEPS, Step
from benchmarks.gpu.runner import Runner, save_report
from benchmarks.gpu.steps.batch import climb
from benchmarks.gpu.steps.readings import compare
from cluster.probe.gpus import GpuSourceReading
from cluster.probe.probe import GpuReading

HERE = "tests.unit.benchmark_tests.gpu_steps"
MINIMAL = ("torch", "onnx", "onnxruntime", "nvidia-ml-py", "scikit-learn", "pandas", "pydantic")
"""What the script may need, and what these need themselves."""
BLOCKER = """
import importlib.metadata as metadata, re, sys

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

allowed, todo = set(), list({roots!r})
while todo:
    name = plain(todo.pop())
    if name not in allowed:
        allowed.add(name)
        try:
            needs = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:
            continue
        todo += [re.match("[A-Za-z0-9._-]+", need)[0] for need in needs if "extra ==" not in need]
ours = {{"benchmarks", "cluster", "trainers", "serve", "docs", "tests"}}
blocked = {{top for top, owners in metadata.packages_distributions().items()
            if top not in ours and not any(plain(owner) in allowed for owner in owners)}}

class Without:
    # a finder that does not find what is blocked
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def context_for(work: Path, *arguments: str) -> Context:
    return Context("cpu", work, time.monotonic() + 600, arguments)


def test_steps_are_ended_kept_and_told_apart(tmp_path: Path) -> None:
    (work := tmp_path / "work").mkdir()
    runner = Runner("cpu", 10, work, partial(save_report, tmp_path))
    runner.floor_s, runner.until = 2.0, time.monotonic() + 12
    names = ("hang", "crash", "raise_it", "find_wrong", "find_right", "decline")
    steps = [Step(name, f"{HERE}:{name}", 0.01, f"{name}?", arguments=("a",)) for name in names]
    steps.append(Step("lacking", f"{HERE}:find_right", 1, "lacking?", ("json", "no_such_module")))
    runner.run(steps)
    report = json.loads((tmp_path / "result.json").read_text())
    assert {name: step["status"] for name, step in report["steps"].items()} == {
        "hang": "cut",
        "crash": "failed",
        "raise_it": "failed",
        "find_wrong": "wrong",
        "find_right": "done",
        "decline": "skipped",
        "lacking": "skipped",
    }
    record = report["steps"]
    assert record["hang"]["findings"] == {"before": {"rows": 3}}
    assert record["crash"]["findings"] == {"before": {"rows": 4}}
    assert record["crash"]["reason"] == "SIGABRT"
    assert record["raise_it"]["output"][-1] == "ValueError: a step's own bug"
    assert record["find_right"]["findings"]["figure"]["arguments"] == ["a"]
    assert record["lacking"]["reason"] == "not installed here: no_such_module"
    page = (tmp_path / "result.md").read_text()
    assert "A dry run on a CPU" in page
    assert "| figure | **no** | ratio 0.5 |" in page
    assert "| part |  | skipped: there is none here |" in page


def test_a_step_without_time_is_said_so(tmp_path: Path) -> None:
    runner = Runner("cpu", 0.0, tmp_path, partial(save_report, tmp_path))
    report = runner.run([Step("find_right", f"{HERE}:find_right", 1, "?")])
    assert report["steps"]["find_right"]["status"] == "not run"
    assert report["steps"]["find_right"]["reason"] == "too little time was left"


def test_a_dry_run_never_takes_the_place_of_a_gpus_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--out", str(RESULTS)]) == 2
    (tmp_path / "result.json").write_text(json.dumps({"dry": False}))
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "a GPU's result lies there" in capsys.readouterr().err
    assert load_json(tmp_path / "result.json") == {"dry": False}


def test_a_machine_without_a_gpu_and_a_step_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--only", "memroy"]) == 2
    assert "the steps are device, readings, memory" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([]) == 3
        assert "no CUDA GPU" in capsys.readouterr().err


UUID = "GPU-1"
READING = GpuReading(
    uuid=UUID,
    name="NVIDIA H200",
    memory_total_bytes=143771 << 20,
    memory_free_bytes=143000 << 20,
    memory_used_bytes=700 << 20,
    compute_capability=(9, 0),
    utilization_percent=0,
    temperature_celsius=30,
    power_watts=75.0,
)
PRINTED = "GPU-1, NVIDIA H200, 580.1, 9.0, 143771, 701, 143000, 30, 75.41, 0\n"


@pytest.mark.parametrize(
    ("printed", "wrong"),
    [
        (PRINTED, ""),
        (PRINTED.replace("143771", "81559"), "memory.total: [143771.0"),
        (PRINTED.replace("9.0", "8.0"), "compute_cap: '9.0' by NVML, '8.0' printed"),
        (PRINTED.replace("75.41", "[N/A]"), "power.draw: [75.0, 75.0] by NVML, '[N/A]' printed"),
    ],
)
def test_nvml_is_compared_with_what_nvidia_smi_prints(tmp_path: Path, printed: str, wrong: str) -> None:
    reading = GpuSourceReading(driver_version="580.1", gpus=(READING,))
    findings = Findings(tmp_path / "f.json")
    compare(reading, reading, printed, findings)
    found = findings.found[UUID]
    assert found["ok"] == (not wrong)
    assert [text.startswith(wrong) for text in found["wrong"]] == [True] * bool(wrong)


def test_a_gpu_that_nvml_does_not_see_is_wrong(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "f.json")
    reading = GpuSourceReading(driver_version="580.1", gpus=(READING.model_copy(update={"uuid": "GPU-2"}),))
    compare(reading, reading, PRINTED, findings)
    assert findings.found[UUID]["ok"] is False


def test_the_limit_is_climbed_to_by_one_percent(tmp_path: Path) -> None:
    assert 1990 < climb(1900, lambda rows: rows <= 2000, context_for(tmp_path)) <= 2000


def dry(tmp_path: Path, name: str) -> dict[str, Any]:
    """Findings of a step, in this process."""
    (step,) = (step for step in STEPS if step.name == name)
    findings = Findings(tmp_path / f"{name}.json")
    run_step(step.function, step.needs, context_for(tmp_path, *step.arguments), findings)
    return {**load_json(findings.path), **findings.found}


def test_the_batch_finder_the_estimate_and_the_engine_run_dry(tmp_path: Path) -> None:
    assert torch.__version__.startswith(dry(tmp_path, "device")["device"]["versions"]["torch"])
    assert dry(tmp_path, "batch")["found"]["fitting"] == 8
    memory = dry(tmp_path, "memory")
    assert memory["resnet50_bf16"]["estimate_mib"] > memory["resnet50_bf16"]["activations_mib"] > 0
    engine = dry(tmp_path, "engine")
    assert engine["answers"]["ok"]
    assert engine["batcher"]["ok"]
    assert engine["batcher"]["rows_per_call"] > 1


def test_a_resumed_run_has_equal_bytes_dry(tmp_path: Path) -> None:
    found = dry(tmp_path, "resume")
    assert found["resnet50_fp32_deterministic"]["ok"]
    assert found["resnet50_fp32_deterministic"]["equal_bytes"]


def run_script(out: Path, steps: str, **environment: str) -> dict[str, Any]:
    """The steps' records; what was printed is part of a failure."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "30", "--only", steps]
    done = subprocess.run(
        [*command, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(load_json(out / "result.json")["steps"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_runs_dry_with_its_endpoint_graphs_and_tests(tmp_path: Path) -> None:
    report = run_script(tmp_path, "readings,endpoint,graphs,tests")
    assert {name: step["status"] for name, step in report.items() if name != "readings"} == dict.fromkeys(
        ("endpoint", "graphs", "tests"), "done"
    )
    assert report["endpoint"]["findings"]["load"]["ok"]
    assert report["graphs"]["findings"]["resnet50_torch_float32"]["ok"]
    skipped = [name for name, facts in report["tests"]["findings"].items() if "skipped" in facts]
    assert any("test_training_gpu.py" in name for name in skipped) == (not torch.cuda.is_available())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_needs_no_ray_and_nothing_else_that_is_not_named(tmp_path: Path) -> None:
    """Steps that train run with nothing importable beside what the README names; others say what they lack."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER.format(roots=MINIMAL))
    steps = "device,memory,batch,training_bert_base_fp16,endpoint,tests"
    report = run_script(tmp_path, steps, PYTHONPATH=str(tmp_path / "site"))
    assert [name for name, step in report.items() if step["status"] == "done"] == steps.split(",")[:4]
    assert report["endpoint"]["reason"].startswith("not installed here: ")
    assert "pytest" in report["tests"]["reason"]
