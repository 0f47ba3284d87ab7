"""How much memory an update takes, measured from the model's own graph without running it on data.

    total = parameters + gradients + optimizer state + EMA + what autograd saves for one micro-batch + its gradients

Activations are counted by autograd's own hooks on a forward with tensors that have a shape and no storage: each
storage that backward will need once, whatever the layers are. A guess from layer types would miss what a user's model
keeps. In fp32 on a CPU these are meta tensors. Autocast passes meta tensors by, and a GPU's kernels save other things
than a CPU's (a dropout's mask takes a byte an element, fused attention no scores): there torch's fake tensors play the
device, as far as this torch was built for it.

Invariant: nothing is allocated and the caller's model is not touched; the result is a pure function of the model,
the shapes, the micro-batch and the training options.

Covered: any module that runs on meta or fake tensors. Not covered: a framework's fixed costs (CUDA context, oneDNN
and cuDNN workspaces), which `details` name as such.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import nn

from cluster.bundle.signature import NUMPY_OF, TensorSpec
from cluster.spec.optimizer import OptimizerSpec
from cluster.spec.train import TrainSpec
from trainers.loop.parts.precision import AUTOCAST_DTYPE

TENSORS = {"sgd": 1, "lion": 1}  # moments a parameter; the others have two (of Muon's matrices one, not known here)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one worker."""

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    """Saved for backward by one micro-batch."""
    transient: int
    """Largest gradient of one activation or one weight, which lives beside the rest while backward runs."""
    batch: int
    """Inputs and targets of one micro-batch."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def estimate_memory(
    model: nn.Module, inputs: tuple[TensorSpec, ...], micro_size: int, train: TrainSpec, device_type: str = "cpu"
) -> MemoryEstimate:
    """For micro-batches of `micro_size` rows on `cpu` or `cuda`. Raises what the model's forward raises on meta or
    fake tensors."""
    trainable = sum(tensor_bytes(parameter) for parameter in model.parameters() if parameter.requires_grad)
    saved, largest = measure_activations(model, inputs, micro_size, train.precision, device_type)
    return MemoryEstimate(
        parameters=sum(tensor_bytes(parameter) for parameter in model.parameters()),
        buffers=sum(tensor_bytes(buffer) for buffer in model.buffers()),
        gradients=trainable,
        optimizer=sum(_moments(parameter, train.optimizer) for parameter in model.parameters()),
        ema=trainable if train.ema else 0,
        activations=saved,
        transient=max(largest, *(tensor_bytes(parameter) for parameter in model.parameters())),
        batch=sum(micro_size * tensor.dtype.itemsize * _elements(tensor) for tensor in inputs) + 8 * micro_size,
    )


def _moments(parameter: torch.Tensor, optimizer: OptimizerSpec) -> int:
    """Bytes of the optimizer's state of a parameter; of a function of the user's as AdamW's."""
    if not parameter.requires_grad or (optimizer.name == "sgd" and not optimizer.constant("momentum")):
        return 0
    if optimizer.name == "adafactor" and parameter.dim() > 1:  # a row's and a column's mean of squares
        ends = sum(parameter.numel() // parameter.size(axis) for axis in (-1, -2))
        return ends * parameter.element_size()
    if optimizer.name == "adafactor":
        return tensor_bytes(parameter)
    return TENSORS.get(optimizer.name, 2) * tensor_bytes(parameter)


def measure_activations(
    model: nn.Module, inputs: tuple[TensorSpec, ...], micro_size: int, precision: str, device_type: str = "cpu"
) -> tuple[int, int]:
    """(bytes that autograd saves in one forward, bytes of the largest single one), parameters not counted."""
    twin = copy.deepcopy(model).to("meta").train()
    with _stage(precision, device_type) as empty:
        twin._apply(empty)
        rows = tuple(empty(_meta_input(tensor, micro_size)) for tensor in inputs)
        return _saved_by_forward(twin, rows)


def _saved_by_forward(twin: nn.Module, rows: tuple[torch.Tensor, ...]) -> tuple[int, int]:
    own = {_storage(tensor) for tensor in (*twin.parameters(), *twin.buffers(), *rows)}
    seen: dict[int, int] = {}
    held: list[torch.Tensor] = []  # keeps storages alive, so that their addresses are not used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        key = _storage(tensor)
        if key not in own and key not in seen:
            seen[key] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = twin(*rows)
        torch.log_softmax(outputs.float(), dim=-1).sum()
    return sum(seen.values()), max(seen.values(), default=0)


@contextmanager
def _stage(precision: str, device_type: str) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Where a forward without storage runs; yields what makes a tensor of it like a meta tensor."""
    if precision == "fp32" and device_type == "cpu":
        yield lambda tensor: tensor
        return
    from torch._subclasses.fake_tensor import FakeTensorMode

    built = device_type != "cuda" or torch.backends.cuda.is_built()
    device = torch.device(device_type if built else "cpu")

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    with FakeTensorMode(), _autocast_without_a_device(precision, device.type):
        yield empty


@contextmanager
def _autocast_without_a_device(precision: str, device_type: str) -> Iterator[None]:
    """What `torch.autocast` does; for CUDA it turns itself off on a machine without a GPU."""
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, precision != "fp32")
    torch.set_autocast_dtype(device_type, AUTOCAST_DTYPE.get(precision, before[1]))
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _meta_input(tensor: TensorSpec, rows: int) -> torch.Tensor:
    dtype = torch.from_numpy(NUMPY_OF[tensor.datatype].type(0).reshape(1)).dtype
    shape = [rows, *(size if size > 0 else 1 for size in tensor.item_shape)]
    return torch.empty(shape, dtype=dtype, device="meta")


def _elements(tensor: TensorSpec) -> int:
    count = 1
    for size in tensor.item_shape:
        count *= max(1, size)
    return count


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
