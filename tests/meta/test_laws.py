"""The Laws of the house (docs/architecture.md), each as a test. Import contracts are checked by `make check`."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "trainers", "serve")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 40
PARAMETERS_MAX = 6

LONG_FILES: dict[str, str] = {}
"""Files above the limit, with the reason."""
LONG_FUNCTIONS: dict[str, str] = {}
"""`file::function` above the limit, with the reason."""
MANY_PARAMETERS: dict[str, str] = {
    "trainers/compress/students.py::build_student": "a factory called by name with keywords from JSON",
}
"""`file::function` with more parameters, with the reason."""
BROAD_EXCEPTS = {
    "trainers/trackers/__main__.py": "the trackers' seam: a library's errors become one warning of the run",
    "trainers/models/zoo.py": "other libraries raise anything for names, options and downloads they dislike",
    "cluster/command.py": "the end of every command",
    "cluster/pipeline/driver.py": "any stage may raise anything",
    "cluster/pipeline/ray_thread.py": "handed to the thread that waits",
    "cluster/runtime/private/start.py": "handed to the thread that waits",
    "serve/doors/asgi.py": "the edge of an HTTP request",
    "serve/doors/rpc.py": "the edge of a gRPC request",
    "serve/deployments/replica.py": "the same on Ray Serve",
    "serve/adopt.py": "the classes of a C extension, raised again as one of ours",
    "serve/models/loading.py": "whatever an engine raises while it is proved, raised again as one of ours",
    "serve/batching/batcher.py": "whatever an engine raises is the answer of its own request",
    "serve/engines/process.py": "a worker's main",
    "serve/engines/onnxruntime.py": "the classes of a C extension, raised again as one of ours",
    "trainers/loop/distributed/memory_short.py": "the exchange must be joined first, else workers wait for ever",
    "trainers/loop/tuner/batch_size_finder.py": "a model that cannot be counted: the trial with data decides",
    "trainers/launch/worker_group.py": "handed to the thread that waits",
    "trainers/launch/local_worker.py": "a worker's main",
    "cluster/pipeline/views.py": "best effort: a view that fails is a warning of the run",
    "cluster/pipeline/early_start.py": "best effort: the stage itself tries again and says what is wrong",
    "trainers/compress/graph_recipes.py": "a quantizer raises anything: the recipe stops, with its words",
    "trainers/search/trial.py": "an error is an outcome of the trial",
}
"""Files that may catch everything, with the reason."""


def _sources() -> list[Path]:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return [path for path in files if "proto" not in path.parts]


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_short() -> None:
    lengths = {_name(path): path.read_text(encoding="utf-8").count("\n") for path in _sources()}
    assert {name: n for name, n in lengths.items() if n > FILE_LINES_MAX and name not in LONG_FILES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{_name(path)}::{node.name}": length
        for path in _sources()
        for node in _functions(path)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert {name: n for name, n in long.items() if name not in LONG_FUNCTIONS} == {}


def test_functions_have_few_parameters() -> None:
    many = {
        f"{_name(path)}::{node.name}": count
        for path in _sources()
        for node in _functions(path)
        if (count := _num_parameters(node)) > PARAMETERS_MAX and "cli" not in path.parts
    }
    assert {name: n for name, n in many.items() if name not in MANY_PARAMETERS} == {}


def _num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = node.args
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")])


def test_broad_excepts_are_at_the_listed_seams() -> None:
    found = set()
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            ):
                reraises = any(isinstance(item, ast.Raise) and item.exc is None for item in ast.walk(node))
                if not reraises:
                    found.add(_name(path))
    assert found <= set(BROAD_EXCEPTS), "a broad except needs a listed reason"


@pytest.mark.parametrize("forbidden", ["pickle.load", "torch.load", "cloudpickle.load", "joblib.load", "dill.load"])
def test_nothing_unpickles(forbidden: str) -> None:
    found = [_name(path) for path in _sources() if forbidden in path.read_text(encoding="utf-8")]
    assert found == []


def test_arrays_are_loaded_without_pickle() -> None:
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                keywords = {item.arg: ast.unparse(item.value) for item in node.keywords}
                assert keywords.get("allow_pickle") == "False", f"{_name(path)}:{node.lineno}"


def test_importing_the_command_line_loads_options_and_no_more() -> None:
    """What a verb needs is imported when it runs: each of these would cost `manta --help` its quarter of a second."""
    code = (
        "import sys, cluster.cli.app; "
        "heavy = {'torch', 'ray', 'onnx', 'onnxruntime', 'sklearn', 'pandas', 'matplotlib', 'numpy', 'pydantic', "
        "'yaml', 'httpx', 'fsspec', 'psutil', 'pynvml', 'asyncio', 'cluster.spec', 'cluster.bundle', 'cluster.store'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_has_no_side_effects(room: str) -> None:
    """No log handler, no signal handler, no Ray, no CUDA, no thread."""
    code = f"""
import logging, os, pkgutil, signal, sys, threading, importlib
before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ))
package = importlib.import_module({room!r})
assert threading.active_count() == 1, threading.enumerate()
assert not logging.getLogger().handlers
assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), dict(os.environ))
assert 'ray' not in sys.modules and 'torch' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


def test_packages_are_exactly_the_three() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "manta-ml"
    assert project["project"]["scripts"] == {"manta": "cluster.cli:main"}
    assert sorted(project["tool"]["setuptools"]["packages"]["find"]["include"]) == ["cluster*", "serve*", "trainers*"]


def test_every_dependency_is_pinned_and_names_a_file() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    for requirement in project["dependencies"]:
        name = requirement.split(">")[0].split("[")[0].split("=")[0].lower().replace("_", "-")
        assert name in pins, f"{name} is not pinned in constraints.txt"
        line = next(line for line in text.splitlines() if f'"{requirement}"' in line)
        where = line.split("#", 1)[1].strip().split(",")[0].split(" (")[0].strip()
        assert (ROOT / where).exists(), f"{name} names {where}, which is not there"


def test_nothing_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    words = ["/" + "root/", "/" + "work/", "/tmp/" + "boot"]
    texts = {
        name: (ROOT / name).read_text(encoding="utf-8", errors="ignore")
        for name in listed
        if (ROOT / name).is_file()
        and (ROOT / name).suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".json", ""}
    }
    assert [name for name, text in texts.items() if any(word in text for word in words)] == []


def test_no_file_holds_the_marks_of_a_merge() -> None:
    marks = "^(<{7} |>{7} )"
    found = subprocess.run(["git", "grep", "-nIE", marks], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1, found.stdout + found.stderr  # 1: nothing found
