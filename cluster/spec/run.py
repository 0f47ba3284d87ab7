"""The whole YAML as one frozen value: `RunSpec`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.errors import RequestError
from cluster.spec.base import Seed, StrictSpec
from cluster.spec.compress import CompressSpec
from cluster.spec.data import DataSpec
from cluster.spec.export import ExportSpec
from cluster.spec.model import AutoModelSpec, ModelSpec
from cluster.spec.search import SearchSpec
from cluster.spec.serve import ServeSpec
from cluster.spec.tracking import TrackingSpec
from cluster.spec.train import TrainSpec

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class RunSpec(StrictSpec):
    """From raw data to an answering endpoint. A section set to null skips its stage where that is possible."""

    version: Literal[1]
    """Version of this format."""
    name: Annotated[str, Field(pattern=RUN_NAME)] | None = None
    """Name of the run and of its folder; the name of the YAML file when null."""
    seed: Seed = 7
    """Seed of initialization, sample order, dropout and augmentation."""
    data: DataSpec
    model: ModelSpec = AutoModelSpec()
    train: TrainSpec = TrainSpec()
    search: SearchSpec | None = None
    """null: train with the values as they stand."""
    compress: CompressSpec | None = CompressSpec()
    """null: deploy the float model."""
    export: ExportSpec = ExportSpec()
    serve: ServeSpec | None = ServeSpec()
    """null: stop at the bundle."""
    tracking: TrackingSpec = TrackingSpec()

    @model_validator(mode="after")
    def _graph_fits_the_engine(self) -> RunSpec:
        if self.serve is None or self.serve.engine != "tensorrt":
            return self
        if "labels" in self.export.fuse:
            raise ValueError("export.fuse has labels, which are strings: serve.engine tensorrt has none")
        if self.export.optimize.transformer:
            raise ValueError("export.optimize.transformer writes ONNX Runtime's operators: tensorrt knows none of them")
        return self


def run_name(given: str | None, spec: RunSpec, path: Path) -> str:
    """Name of the run and of its folder: the one given, else the spec's, else the file's. Raises RequestError."""
    if given is None:
        return spec.name or name_of_file(path)
    if re.fullmatch(RUN_NAME, given):
        return given
    raise RequestError(
        f"Cannot name the run {given!r}",
        found="it is no name for a folder of the runs",
        rule="letters, digits, dots, dashes and underscores, at most 63, beginning with a letter or a digit",
        remedy="Choose another --name; --runs-dir says where the run's folder lies.",
    )


def name_of_file(path: Path) -> str:
    """`my spec (2).yaml` -> `my-spec-2`: what no name may hold becomes a dash."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")
    return plain[:63] or "run"
