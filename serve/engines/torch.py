"""The torch module itself behind the `Engine` protocol: weights.safetensors and the family's code.

For variants that have no ONNX form, and as a second opinion beside one. The family is found by name in
`trainers` (cluster/entrypoints.load): a serving image without that room serves ONNX only, and says so.

Covered: CPU and CUDA. Not covered: torch.compile (its first calls take minutes; export ONNX or TensorRT instead).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from cluster.entrypoints import load
from cluster.errors import BundleError, MissingDependencyError
from cluster.spec.model import ModelSpec
from serve.engines.engine import EngineRequest

MODULE_LOADER = "trainers.models.weights:load_module"


class TorchEngine:
    """A torch module in eval mode."""

    platform = "pytorch_state"

    def __init__(self, request: EngineRequest) -> None:
        import torch

        self.preferred_rows: tuple[int, ...] = ()
        self._torch: Any = torch
        if request.num_threads:
            torch.set_num_threads(request.num_threads)
        self._signature = request.signature
        if len(request.signature.outputs) != 1:
            raise BundleError(
                f"Cannot load {request.path.name}",
                found=f"the bundle has {len(request.signature.outputs)} outputs",
                rule="a family's forward returns one",
            )
        spec: Any = TypeAdapter(ModelSpec).validate_python(request.model, strict=False)
        inputs, width = request.signature.inputs, request.signature.outputs[0].shape[-1]
        module = _loader()(spec, inputs, width, request.path.parent, request.target)
        self._module: Any = module.to(request.device)
        self._device = request.device

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        with torch.inference_mode():
            tensors = [
                torch.from_numpy(np.array(inputs[tensor.name])).to(self._device) for tensor in self._signature.inputs
            ]
            output = self._module(*tensors).float().cpu().numpy()
        return {self._signature.outputs[0].name: output}

    def footprint_bytes(self) -> int | None:
        if self._device == "cpu":
            return sum(p.numel() * p.element_size() for p in self._module.parameters())
        return int(self._torch.cuda.memory_reserved(self._device))

    def close(self) -> None:
        self._module = None
        if self._device != "cpu":
            self._torch.cuda.empty_cache()


def _loader() -> Any:
    try:
        return load(MODULE_LOADER)
    except ImportError as error:
        raise MissingDependencyError(
            "Cannot rebuild the torch module",
            found=f"the training room is not installed here: {error}",
            rule="only it knows the families",
            remedy="Serve the ONNX variant, or install the whole distribution.",
        ) from None
