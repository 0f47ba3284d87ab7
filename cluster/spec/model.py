"""`model`: which family of networks, and its shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import StrictSpec


class AutoModelSpec(StrictSpec):
    """Choose by the data: images get `cnn`, tables get `mlp`."""

    family: Literal["auto"] = "auto"


class MlpSpec(StrictSpec):
    """A multi-layer perceptron over flattened inputs."""

    family: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (128, 128)
    """Width of each hidden layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class CnnSpec(StrictSpec):
    """A small convolutional network with batch norm."""

    family: Literal["cnn"]
    width: Annotated[int, Field(gt=0)] = 32
    """Channels of the first stage; each later stage doubles them."""
    stages: Annotated[int, Field(gt=0, le=5)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


ModelSpec = Annotated[AutoModelSpec | MlpSpec | CnnSpec, Field(discriminator="family")]
