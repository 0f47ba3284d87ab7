"""ONNX Runtime behind the `Engine` protocol: CPU, CUDA and TensorRT execution providers.

Invariant: a session runs on the device that was asked for, or loading fails; ONNX Runtime's own habit of falling
back to the CPU is turned off, and the provider that it took is looked at.

Covered: CPU; CUDA and TensorRT providers by their documented options (onnxruntime.ai, execution providers, read
2026-11; not run here: no GPU). Not covered: IO binding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.errors import BundleError, InferenceError, MissingDependencyError
from serve.engines.engine import EngineRequest


class OnnxRuntimeEngine:
    """An ONNX graph in an `InferenceSession`."""

    platform = "onnx_onnxv1"

    def __init__(self, request: EngineRequest) -> None:
        import onnxruntime

        self.preferred_rows: tuple[int, ...] = ()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if request.num_threads:
            options.intra_op_num_threads = request.num_threads
            options.inter_op_num_threads = 1
        # threads that spin between calls take the core from the event loop and from other replicas
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = providers_for(request, onnxruntime.get_available_providers())
        try:
            # without enable_fallback=0 a provider that fails is replaced by the next one, with a line on the screen
            self._session: Any = onnxruntime.InferenceSession(
                str(request.path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:
            raise BundleError(
                f"Cannot load {request.path.name}",
                found=f"ONNX Runtime {onnxruntime.__version__} says: {str(error)[:500]}",
                remedy="Verify the bundle, or export the model again.",
            ) from error
        self._check_provider(request, providers[0])
        self._outputs = [tensor.name for tensor in request.signature.outputs]
        self._text_inputs = [t.name for t in request.signature.inputs if t.datatype == "BYTES"]
        self._text_outputs = [t.name for t in request.signature.outputs if t.datatype == "BYTES"]
        self._check_names(request)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = dict(inputs)
        for name in self._text_inputs:
            feed[name] = _as_text(name, feed[name])
        found = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        for name in self._text_outputs:
            found[name] = _as_bytes(found[name])
        return found

    def footprint_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self._session = None

    def _check_provider(self, request: EngineRequest, wanted: Any) -> None:
        """A provider whose libraries do not load is left out by ONNX Runtime with a log line."""
        name = wanted if isinstance(wanted, str) else wanted[0]
        have = self._session.get_providers()
        if have[0] != name:
            raise MissingDependencyError(
                f"Cannot load {request.path.name} on {request.device}",
                found=f"ONNX Runtime left {name} out and would run on {', '.join(have)}",
                rule="a model runs on the device that was asked for, or not at all",
                remedy="ONNX Runtime's log names the library of CUDA, cuDNN or TensorRT that is missing or too old.",
            )

    def _check_names(self, request: EngineRequest) -> None:
        have = {node.name for node in self._session.get_inputs()}, {node.name for node in self._session.get_outputs()}
        want = {t.name for t in request.signature.inputs}, {t.name for t in request.signature.outputs}
        if have != want:
            raise BundleError(
                f"Cannot load {request.path.name}",
                found=f"the graph has inputs {sorted(have[0])} and outputs {sorted(have[1])}",
                rule=f"the manifest says inputs {sorted(want[0])} and outputs {sorted(want[1])}",
                remedy="Export the model again.",
            )


def _as_text(name: str, array: np.ndarray) -> np.ndarray:
    """ONNX strings are UTF-8 text; the protocol's BYTES may be anything. Raises InferenceError."""
    found = np.empty(array.shape, dtype=object)
    try:
        found.reshape(-1)[:] = [item.decode("utf-8") for item in array.flat]
    except UnicodeDecodeError:
        raise InferenceError(
            "Cannot run the model", found=f"input {name!r} has bytes that are not UTF-8", rule="ONNX takes text"
        ) from None
    return found


def _as_bytes(array: np.ndarray) -> np.ndarray:
    found = np.empty(array.shape, dtype=object)
    found.reshape(-1)[:] = [str(item).encode() for item in array.flat]
    return found


def providers_for(request: EngineRequest, available: list[str]) -> list[Any]:
    """Execution providers for a request's device (`cpu`, `cuda:N`, `tensorrt:N`), best first.

    Raises MissingDependencyError.
    """
    kind, _, number = request.device.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    wanted = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}.get(kind)
    if wanted not in available:
        raise MissingDependencyError(
            f"Cannot load a model on {request.device}",
            found=f"this ONNX Runtime has {', '.join(available)}",
            rule=f"it needs {wanted}" if wanted else "devices are cpu, cuda:N and tensorrt:N",
            remedy="Install the extra: pip install 'manta-ml[gpu]'.",
        )
    device = {"device_id": int(number or 0)}
    rest: list[Any] = [("CUDAExecutionProvider", device), "CPUExecutionProvider"]
    return rest if kind == "cuda" else [(wanted, {**device, **tensorrt_options(request)}), *rest]


def tensorrt_options(request: EngineRequest) -> dict[str, Any]:
    """Options of ONNX Runtime's TensorRT provider: precision of the variant, shapes of the largest batch.

    Source: onnxruntime.ai, TensorRT execution provider, read 2026-11. Low precision is allowed only where the variant
    has it; axes that are free beside the batch are left to the provider.
    """
    options: dict[str, Any] = {}
    if request.precision != "fp32":
        options[f"trt_{request.precision}_enable"] = True
    if all(-1 not in tensor.item_shape for tensor in request.signature.inputs):
        bounds = {"min": 1, "opt": request.max_rows, "max": request.max_rows}
        for word, rows in bounds.items():
            shapes = [
                f"{tensor.name}:{'x'.join(map(str, (rows, *tensor.item_shape)))}" for tensor in request.signature.inputs
            ]
            options[f"trt_profile_{word}_shapes"] = ",".join(shapes)
    return options
