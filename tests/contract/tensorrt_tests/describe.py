"""Run under TensorRT's own Python bindings: prints what they bind, as JSON. Imports nothing of this project.

LD_LIBRARY_PATH=<stubs> PYTHONPATH=<wheel> python describe.py
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

MODULE = "tensorrt_bindings"
CLASSES = (
    "Builder", "EngineInspector", "IBuilderConfig", "ICudaEngine", "IErrorRecorder", "IExecutionContext",
    "IHostMemory", "ILogger", "INetworkDefinition", "IOptimizationProfile", "ITensor", "ITimingCache", "OnnxParser",
    "ParserError", "Runtime",
)  # fmt: skip
"""Classes whose members this project uses."""
SPECIAL = ("__init__", "__bool__", "__nonzero__")


def signatures(name: str, member: Any) -> list[str]:
    """Signatures in a pybind11 docstring, module prefixes cut."""
    text = (getattr(member, "__doc__", None) or "").replace(f"{MODULE}.tensorrt.", "")
    found = re.findall(rf"^\s*(?:\d+\.\s+)?({re.escape(name)}\(.*\)(?:\s*->\s*.+)?)$", text, re.MULTILINE)
    return [one for one in found if "*args, **kwargs" not in one]


def describe_class(cls: type) -> dict[str, list[str]]:
    """Member -> signatures; an empty list is a property or a constant."""
    names = [name for name in dir(cls) if not name.startswith("_")] + [name for name in SPECIAL if hasattr(cls, name)]
    return {name: signatures(name, getattr(cls, name)) for name in names}


def describe(trt: Any) -> dict[str, Any]:
    """Everything that a snapshot holds."""
    public = sorted(name for name in dir(trt) if not name.startswith("_"))
    enums = {name: getattr(trt, name) for name in public if hasattr(getattr(trt, name), "__members__")}
    enums["ILogger.Severity"] = trt.ILogger.Severity
    return {
        "version": trt.__version__,
        "names": public,
        "enums": {name: {key: int(value) for key, value in enum.__members__.items()} for name, enum in enums.items()},
        "classes": {name: describe_class(getattr(trt, name)) for name in CLASSES},
    }


if __name__ == "__main__":
    import tensorrt_bindings

    json.dump(describe(tensorrt_bindings), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
