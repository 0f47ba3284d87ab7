"""`model`: which family of networks, and its shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.spec.base import AutoPositiveInt, StrictSpec

Text = Annotated[str, Field(min_length=1)]
Option = bool | int | float | str | tuple[int, ...]


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


class TimmSpec(StrictSpec):
    """An image network of timm, by name. Needs the `zoo` extra."""

    family: Literal["timm"]
    name: Text
    """As `timm.list_models()` lists it: `resnet18`, `vit_tiny_patch16_224`; or `hf-hub:` and a repository."""
    pretrained: bool = False
    """Start from the library's weights, which are downloaded where training happens."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    options: dict[str, Option] = {}
    """More arguments of `timm.create_model`, such as `img_size`."""


class TorchvisionSpec(StrictSpec):
    """An image network of torchvision, by name, untrained. Needs the `zoo` extra."""

    family: Literal["torchvision"]
    name: Text
    """As `torchvision.models.list_models()` lists it: `resnet18`, `mobilenet_v3_small`."""
    options: dict[str, Option] = {}
    """More arguments of `torchvision.models.get_model`."""


class TransformersSpec(StrictSpec):
    """A text classifier of transformers over token ids. Needs the `zoo` extra."""

    family: Literal["transformers"]
    name: Text
    """A model type, made anew (`bert`, `distilbert`); or a repository or folder of a saved model."""
    pretrained: bool = False
    """Start from the weights at `name` (safetensors). Token ids must then be those of that model's own tokenizer."""
    vocabulary: AutoPositiveInt = "auto"
    """Number of token ids of a model made anew; `auto`: `data.encode.vocabulary`."""
    options: dict[str, Option] = {}
    """More values of the model's configuration, such as `hidden_size`."""


ModelSpec = Annotated[
    AutoModelSpec | MlpSpec | CnnSpec | TransformerSpec | TimmSpec | TorchvisionSpec | TransformersSpec,
    Field(discriminator="family"),
]
