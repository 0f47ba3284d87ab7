"""Run under TensorRT's real bindings and stub libraries: this project's own calls, as far as they go without a GPU.

python real.py GRAPH    prints one JSON object
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt  # the wheel's own name; the `tensorrt` metapackage only renames it

from cluster.errors import MantaError  # noqa: E402
from cluster.probe.tensorrt_calls import TensorRtCalls, make_logger, make_recorder  # noqa: E402
from trainers.export.tensorrt import BuildRequest, Profile, build_engine, load_tensorrt, network_flags  # noqa: E402


def raised(call: Any) -> str:
    """Class and text of what a call raises."""
    try:
        call()
    except (MantaError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(graph: str) -> dict[str, Any]:
    """Everything that the test compares."""
    logger, recorder = make_logger(trt), make_recorder(trt)
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        logger.log(getattr(trt.ILogger.Severity, severity), f" {severity} ")
    threads = [
        threading.Thread(target=recorder.report_error, args=(trt.ErrorCodeTRT.INVALID_CONFIG, str(i))) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = TensorRtCalls(trt)
    calls.recorder.report_error(trt.ErrorCodeTRT.FAILED_ALLOCATION, "no memory")
    calls.logger.log(trt.ILogger.Severity.ERROR, "the driver is old")
    request = BuildRequest(Path(graph), "fp32", (Profile({"x": ((1, 3), (4, 3), (8, 3))}),))
    return {
        "loads": load_tensorrt() is trt,
        "logger_is_real": isinstance(logger, trt.ILogger),
        "recorder_is_real": isinstance(recorder, trt.IErrorRecorder),
        "lines": logger.lines,
        "recorded": [recorder.num_errors(), str(recorder.get_error_code(0)), recorder.has_overflowed()],
        "network_flags": network_flags(trt),
        "builder": raised(lambda: calls.make("Builder", lambda: trt.Builder(calls.logger))),
        "runtime": raised(lambda: calls.make("Runtime", lambda: trt.Runtime(calls.logger))),
        "build": raised(lambda: build_engine(request, trt)),
        "wrong_type": raised(lambda: trt.Builder("a name")),
        "gone": raised(lambda: trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH_GONE),
        "dims": [list(trt.Dims((1, 2))), str(trt.DataType.FLOAT), trt.DataType.BF16.itemsize],
        "need": raised(lambda: calls.need(None, "create_network", "because")),
    }


if __name__ == "__main__":
    json.dump(main(sys.argv[1]), sys.stdout)
