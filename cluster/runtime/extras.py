"""Packages that a spec needs and that are not installed: an error before anything is read or trained.

Invariant: a spec that needs an optional package fails at its start, with the extra's name, not after hours.

Covered: the trackers, the model families of other libraries, pruning and rewriting of graphs by them.
Not covered: whether a server answers.
"""

from __future__ import annotations

import importlib.util

from cluster.errors import MissingDependencyError
from cluster.spec.run import RunSpec

MODULES_OF_FAMILY: dict[str, tuple[str, ...]] = {
    "timm": ("timm",),
    "torchvision": ("torchvision",),
    "transformers": ("transformers",),
}
"""`model.family` -> modules of the `zoo` extra that it needs."""


def check_extras(spec: RunSpec) -> None:
    """Raise MissingDependencyError for the first package that is missing on this host."""
    tracking = {"mlflow": spec.tracking.mlflow, "wandb": spec.tracking.wandb}
    for module, section in tracking.items():
        if section is not None:
            require(module, extra="trackers", wanted_by=f"tracking.{module}")
    for module in MODULES_OF_FAMILY.get(spec.model.family, ()):
        require(module, extra="zoo", wanted_by=f"model.family: {spec.model.family}")
    compress = spec.compress
    if compress and "prune" in compress.recipes and compress.prune.tracer == "torch_pruning":
        require("torch_pruning", extra="prune", wanted_by="compress.prune.tracer: torch_pruning")
    if spec.export.optimize.onnxslim:
        require("onnxslim", extra="optimize", wanted_by="export.optimize.onnxslim: true")


def require(module: str, *, extra: str, wanted_by: str) -> None:
    """Raise MissingDependencyError when a module cannot be found. Imports nothing."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:  # no origin: a mere folder of that name, such as wandb's own ./wandb
        raise MissingDependencyError(
            f"Cannot use {wanted_by}",
            found=f"the package {module} is not installed",
            rule=f"it comes with the extra '{extra}'",
            remedy=f"pip install 'manta-ml[{extra}]', or take {wanted_by} out of the spec.",
        )
