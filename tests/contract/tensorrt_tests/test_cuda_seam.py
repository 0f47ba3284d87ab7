"""The names of torch.cuda that the engine's seam uses are those of the installed torch. Nothing of CUDA runs here."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch

from cluster.errors import MissingDependencyError
from serve.engines.cuda import Cuda, TorchCuda
from tests.contract.tensorrt_tests.bindings import ROOT
from tests.contract.tensorrt_tests.memory import HostCuda

pytestmark = pytest.mark.tensorrt_level("L3")


def test_every_torch_cuda_name_exists_and_takes_the_arguments_that_are_given() -> None:
    source = (ROOT / "serve/engines/cuda.py").read_text(encoding="utf-8")
    texts = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    used = {text.partition("_torch.cuda.")[2] for text in texts if "self._torch.cuda." in text}
    assert {"graph", "CUDAGraph", "stream", "Stream"} <= used
    assert [name for name in used if not hasattr(torch.cuda, name)] == []
    assert {"stream", "capture_error_mode"} <= set(inspect.signature(torch.cuda.graph.__init__).parameters)
    assert hasattr(torch.cuda.CUDAGraph, "replay")
    assert isinstance(inspect.getattr_static(torch.cuda.Stream, "synchronize"), object)


@pytest.mark.parametrize("kind", [TorchCuda, HostCuda])
def test_both_kinds_of_memory_have_the_whole_seam(kind: type) -> None:
    wanted = [name for name in vars(Cuda) if not name.startswith("_")]
    assert len(wanted) >= 9
    for name in wanted:
        ours, theirs = inspect.signature(getattr(Cuda, name)), inspect.signature(getattr(kind, name))
        assert list(ours.parameters) == list(theirs.parameters), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_seam_says_what_is_missing() -> None:
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU"):
        TorchCuda("cuda:0")
