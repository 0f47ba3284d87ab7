"""`model`: which family of networks, and its shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.spec.base import AutoPositiveInt, StrictSpec


class AutoModelSpec(StrictSpec):
    """Choose by the data: images get `cnn`, token ids get `transformer`, tables get `mlp`."""

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


class TransformerSpec(StrictSpec):
    """A small transformer encoder over token ids (`data.encode.text: token_ids`)."""

    family: Literal["transformer"]
    width: Annotated[int, Field(gt=0)] = 64
    """Of the embedding and of each layer; a multiple of `heads`."""
    layers: Annotated[int, Field(gt=0)] = 2
    heads: Annotated[int, Field(gt=0)] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    vocabulary: AutoPositiveInt = "auto"
    """Number of token ids; `auto`: `data.encode.vocabulary`."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerSpec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


ModelSpec = Annotated[AutoModelSpec | MlpSpec | CnnSpec | TransformerSpec, Field(discriminator="family")]
