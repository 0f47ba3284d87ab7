"""The whole YAML as one frozen value: `RunSpec`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import StrictSpec
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
    seed: int = 7
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
