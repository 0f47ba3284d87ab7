"""The training engine, without Ray: `fit(request)` in one process or under an initialized process group.

Read loop.py first, then step.py.
"""

from trainers.loop.loop import fit
from trainers.loop.request import FitRequest
from trainers.loop.result import FitResult

__all__ = ["FitRequest", "FitResult", "fit"]
