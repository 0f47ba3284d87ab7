"""ONNX Runtime sessions as this room uses them: a fixed number of threads, no spinning, batched predictions.

Invariant: outputs keep the row order of the inputs, whatever the batch size.

Covered: CPU. Not covered: serving (serve/engines), GPU providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from cluster.errors import MissingDependencyError, ModelError

BATCH_ROWS = 256
LOG_ERRORS_ONLY = 3  # onnxruntime: 0 verbose … 4 fatal


def open_session(model: Path | bytes, *, threads: int = 1, device: str = "cpu") -> ort.InferenceSession:
    """A session with `threads` threads.

    Raises:
        ModelError: ONNX Runtime refuses the file.
        MissingDependencyError: a GPU is requested and this ONNX Runtime has no CUDA provider.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=_providers(device), enable_fallback=0
        )
    except ORT_ERRORS as error:
        name = "the graph" if isinstance(model, bytes) else str(model)
        raise ModelError(
            f"Cannot load {name} into ONNX Runtime {ort.__version__}",
            found=" ".join(str(error).split()),
            remedy="Export the model again; 'manta bundle verify' finds out whether the file was changed.",
        ) from error
    return _check_provider(session, device)


def _check_provider(session: ort.InferenceSession, device: str) -> ort.InferenceSession:
    """ONNX Runtime leaves out a provider whose libraries do not load, and would measure the CPU instead."""
    have = session.get_providers()
    if have[0] != _providers(device)[0]:
        raise MissingDependencyError(
            "Cannot measure on a GPU",
            found=f"ONNX Runtime left the CUDA provider out and would run on {', '.join(have)}",
            rule="what is measured must run where it will be served",
            remedy="ONNX Runtime's log names the library of CUDA or cuDNN that is missing or too old.",
        )
    return session


def run_batches(
    session: ort.InferenceSession, inputs: Mapping[str, np.ndarray], *, batch_rows: int = BATCH_ROWS
) -> dict[str, np.ndarray]:
    """All outputs of all rows by name. Axis 0 of every input and output is the batch."""
    names = [output.name for output in session.get_outputs()]
    rows = len(next(iter(inputs.values())))
    chunks: list[list[np.ndarray]] = []
    for start in range(0, rows, batch_rows):
        feed = {name: np.ascontiguousarray(array[start : start + batch_rows]) for name, array in inputs.items()}
        try:
            chunks.append(session.run(names, feed))
        except ORT_ERRORS as error:
            raise ModelError(
                "Cannot run the graph",
                found=" ".join(str(error).split()),
                rule="it takes " + ", ".join(f"{i.name} {i.type} {i.shape}" for i in session.get_inputs()),
                remedy="Give inputs of these names, types and shapes.",
            ) from error
    return {name: np.concatenate([chunk[i] for chunk in chunks]) for i, name in enumerate(names)}


def predict_graph(graph: Path, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """First output of a graph for all rows, on one thread: (N, …)."""
    return next(iter(run_batches(open_session(graph), inputs).values()))


def _providers(device: str) -> list[str]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    have = ort.get_available_providers()
    if "CUDAExecutionProvider" not in have:
        raise MissingDependencyError(
            "Cannot measure on a GPU",
            found=f"ONNX Runtime {ort.__version__} has the providers {', '.join(have)}",
            rule="compress.target.device: gpu needs the CUDA provider",
            remedy="Install the extra: pip install 'manta-ml[gpu]', or set compress.target.device to cpu.",
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _ort_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
             "RuntimeException", "EPFail", "ModelLoaded", "NoModel", "EngineError")  # fmt: skip
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


ORT_ERRORS = _ort_errors()
