"""ONNX Runtime behind the `Engine` protocol: CPU, CUDA and TensorRT execution providers.

Invariant: a session runs on the device that was asked for, or loading fails; ONNX Runtime's own habit of falling
back to the CPU in silence is turned off.

Covered: CPU; CUDA and TensorRT providers by their documented options (onnxruntime.ai, execution providers, read
2026-11; not run here: no GPU). Not covered: IO binding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.errors import BundleError, InferenceError, MissingDependencyError
from serve.engines.protocol import EngineRequest


class OnnxRuntimeEngine:
    """An ONNX graph in an `InferenceSession`."""

    platform = "onnx_onnxv1"

    def __init__(self, request: EngineRequest) -> None:
        import onnxruntime

        self.preferred_rows: tuple[int, ...] = ()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_fallback", "1")
        if request.num_threads:
            options.intra_op_num_threads = request.num_threads
            options.inter_op_num_threads = 1
        # threads that spin between calls take the core from the event loop and from other replicas
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(request.device, onnxruntime.get_available_providers())
        try:
            self._session: Any = onnxruntime.InferenceSession(str(request.path), options, providers=providers)
        except Exception as error:
            raise BundleError(
                f"Cannot load {request.path.name}",
                found=f"ONNX Runtime {onnxruntime.__version__} says: {str(error)[:500]}",
                remedy="Verify the bundle, or export the model again.",
            ) from error
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


def _providers(device: str, available: list[str]) -> list[Any]:
    """Execution providers for a device, best first. Raises MissingDependencyError."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise MissingDependencyError(
            f"Cannot load a model on {device}",
            found=f"this ONNX Runtime has {', '.join(available)}",
            remedy="Install the extra: pip install 'manta-ml[gpu]'.",
        )
    options = {"device_id": int(device.partition(":")[2] or 0)}
    providers: list[Any] = [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    if "TensorrtExecutionProvider" in available and device.startswith("tensorrt"):
        providers.insert(0, ("TensorrtExecutionProvider", {**options, "trt_fp16_enable": True}))
    return providers
