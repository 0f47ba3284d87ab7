"""`train.deterministic`: the same bytes from the same request on the same kind of GPU.

    torch      kernels with a fixed order of additions; an operation that has none raises, and the error names it
    cuDNN      deterministic algorithms, and none chosen by timing
    cuBLAS     CUBLAS_WORKSPACE_CONFIG: read when CUDA starts, so each worker sets it before (`prepare_process`)
    compiler   no kernel chosen by timing
    sizing     the micro-batch is the largest that fits, not the fastest (tuner/)

Invariant: all of it is put back when the training ends: what runs next in the same process is not slowed down.

Covered: CUDA and CPU, where only the error changes (a run on a CPU repeats its bytes anyway). Not covered: NCCL, whose
sums keep their order while the number of workers and their places stay the same. Has not run on a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from cluster.errors import ModelError, SpecError
from cluster.spec.train import TrainSpec

WORKSPACE_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")  # the two that cuBLAS promises repeatable results for; the first is faster
NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")  # torch's Context::alertNotDeterministic


def prepare_process(train: TrainSpec) -> None:
    """Before CUDA starts in a process that will train: set what cuBLAS reads then. A value that is there stays."""
    if train.deterministic:
        os.environ.setdefault(WORKSPACE_VARIABLE, WORKSPACES[0])


@contextmanager
def deterministic(train: TrainSpec, device: torch.device) -> Iterator[None]:
    """Around a whole training. Raises SpecError where it comes too late, ModelError for an operation without a
    deterministic kernel."""
    if not train.deterministic:
        yield
        return
    if device.type == "cuda":
        _check_workspace(train, started=torch.cuda.is_initialized())
    with ExitStack() as stack:
        _settings(stack, train)
        try:
            yield
        except RuntimeError as error:
            if (missing := NO_KERNEL.search(str(error))) is None:
                raise
            raise _no_kernel(missing[1], error, device) from error


def _settings(stack: ExitStack, train: TrainSpec) -> None:
    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    stack.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
    stack.callback(setattr, cudnn, "deterministic", cudnn.deterministic)
    stack.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    if train.compile:
        import torch._inductor.config as inductor

        if hasattr(inductor, "deterministic"):
            stack.callback(setattr, inductor, "deterministic", inductor.deterministic)
            inductor.deterministic = True


def _check_workspace(train: TrainSpec, *, started: bool) -> None:
    """A GPU's process: the variable must have been there when CUDA started, with a value that helps."""
    if not started:
        prepare_process(train)
    value = os.environ.get(WORKSPACE_VARIABLE)
    if value not in WORKSPACES:
        found = f"{WORKSPACE_VARIABLE} is {value!r}" if value else f"{WORKSPACE_VARIABLE} is not set"
        raise SpecError(
            "Cannot train with train.deterministic",
            found=f"{found}{' and CUDA has started in this process' if started else ''}",
            rule=f"cuBLAS repeats its results only with {' or '.join(WORKSPACES)}, and reads it when CUDA starts",
            remedy=f"Start the process with {WORKSPACE_VARIABLE}={WORKSPACES[0]}.",
        )


def _no_kernel(operation: str, error: RuntimeError, device: torch.device) -> ModelError:
    where = _module_of(error)
    return ModelError(
        "Cannot train with train.deterministic",
        found=f"the operation {operation!r}{f' in {where}' if where else ''} has no deterministic form on {device}",
        rule="every operation must add up in a fixed order",
        remedy=f"Replace {operation!r} in the model or its loss, or set train.deterministic: false.",
        details={"operation": operation},
    )


def _module_of(error: BaseException) -> str:
    """Class of the innermost module whose forward raised; empty in backward, which has no Python frames."""
    name, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        name = type(owner).__name__ if isinstance(owner, nn.Module) else name
        trace = trace.tb_next
    return name
