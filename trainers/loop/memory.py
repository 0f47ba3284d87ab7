"""How much memory an update takes, measured from the model's own graph without running it on data.

    total = parameters + gradients + optimizer state + EMA + what autograd saves for one micro-batch + its gradients

Activations are counted by autograd's own hooks on a forward with meta tensors (shapes without storage): each storage
that backward will need once, whatever the layers are. A guess from layer types would miss what a user's model keeps.

Invariant: nothing is allocated and the caller's model is not touched; the result is a pure function of the model,
the shapes, the micro-batch and the training options.

Covered: any module that runs on meta tensors. Not covered: a framework's fixed costs (CUDA context, oneDNN and cuDNN
workspaces), which `details` name as such.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
from torch import nn

from cluster.bundle.signature import NUMPY_OF, TensorSpec
from cluster.spec.train import TrainSpec

OPTIMIZER_TENSORS = {"adamw": 2, "sgd": 1}  # moments a parameter: exp_avg and exp_avg_sq; momentum_buffer


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
    model: nn.Module, inputs: tuple[TensorSpec, ...], micro_size: int, train: TrainSpec
) -> MemoryEstimate:
    """For micro-batches of `micro_size` rows. Raises what the model's forward raises on meta tensors."""
    trainable = sum(tensor_bytes(parameter) for parameter in model.parameters() if parameter.requires_grad)
    saved, largest = measure_activations(model, inputs, micro_size, train.precision)
    moments = OPTIMIZER_TENSORS[train.optimizer.name]
    if train.optimizer.name == "sgd" and train.optimizer.momentum == 0:
        moments = 0
    return MemoryEstimate(
        parameters=sum(tensor_bytes(parameter) for parameter in model.parameters()),
        buffers=sum(tensor_bytes(buffer) for buffer in model.buffers()),
        gradients=trainable,
        optimizer=moments * trainable,
        ema=trainable if train.ema else 0,
        activations=saved,
        transient=max(largest, *(tensor_bytes(parameter) for parameter in model.parameters())),
        batch=sum(micro_size * tensor.dtype.itemsize * _elements(tensor) for tensor in inputs) + 8 * micro_size,
    )


def measure_activations(
    model: nn.Module, inputs: tuple[TensorSpec, ...], micro_size: int, precision: str
) -> tuple[int, int]:
    """(bytes that autograd saves in one forward, bytes of the largest single one), parameters not counted."""
    twin = copy.deepcopy(model).to("meta").train()
    own = {_storage(tensor) for tensor in (*twin.parameters(), *twin.buffers())}
    rows = tuple(_meta_input(tensor, micro_size) for tensor in inputs)
    own |= {_storage(tensor) for tensor in rows}
    seen: dict[int, int] = {}
    held: list[torch.Tensor] = []  # keeps storages alive, so that their addresses are not used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        key = _storage(tensor)
        if key not in own and key not in seen:
            seen[key] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=precision != "fp32"),
    ):
        outputs = twin(*rows)
        torch.log_softmax(outputs.float(), dim=-1).sum()
    return sum(seen.values()), max(seen.values(), default=0)


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
