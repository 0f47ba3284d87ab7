"""Log setup, called by a `main()` and by nothing else: importing Manta never changes the log.

Invariant: one handler on the root logger, on stderr, made once; a second call replaces it.

Covered: level, format, third-party noise. Not covered: Ray's own logs (they stay in Ray's files).
"""

from __future__ import annotations

import logging
import sys
import warnings

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
NOISY_LOGGERS = ("ray", "urllib3", "asyncio", "matplotlib", "torch.onnx", "onnxscript", "onnx_ir", "optuna", "httpx")
OWN_LEVEL_LOGGERS = ("ray.serve",)  # which set level and handler of their own when they are imported
_HANDLER_NAME = "manta"


def setup_logging(level: int = logging.INFO) -> None:
    """Log to stderr at `level`, libraries at WARNING. Called once a process, by its main()."""
    root = logging.getLogger()
    for handler in [item for item in root.handlers if item.get_name() == _HANDLER_NAME]:
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(logging.Formatter(FORMAT, datefmt="%Y-%m-%dT%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(level)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in OWN_LEVEL_LOGGERS:
        logging.getLogger(name).addFilter(_is_warning)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    # Ray's own use of its old names is for its developers, three paragraphs a process
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray(\.|$)")


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
