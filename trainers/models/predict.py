"""Predictions of a torch module over rows, in batches, without gradients.

Invariant: the module is in eval mode while it predicts and in its old mode afterwards; row order is the input's.

Covered: any number of inputs and rows, CPU and GPU. Not covered: predictions of an ONNX file
(trainers/export/session.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

BATCH_ROWS = 256  # small enough for a CPU's caches with the shipped families, large enough to hide Python


def predict_torch(module: nn.Module, inputs: Mapping[str, np.ndarray], *, batch_rows: int = BATCH_ROWS) -> np.ndarray:
    """Logits or values of all rows: (N, num_outputs) float32."""
    rows = len(next(iter(inputs.values())))
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    was_training = module.training
    module.eval()
    chunks = []
    try:
        with torch.inference_mode():
            for start in range(0, rows, batch_rows):
                batch = tensors_of(inputs, slice(start, start + batch_rows), device)
                chunks.append(module(*batch).float().cpu().numpy())
    finally:
        module.train(was_training)
    return np.concatenate(chunks) if chunks else np.zeros((0, 0), np.float32)


def tensors_of(
    inputs: Mapping[str, np.ndarray], rows: slice, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, ...]:
    """Rows of every input as tensors, in the order of the mapping. Copies: memory-mapped shards are read-only."""
    return tuple(torch.from_numpy(np.array(array[rows])).to(device) for array in inputs.values())
