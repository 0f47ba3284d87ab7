"""`compress`: which recipes are tried, what a candidate may cost, and what it must gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cluster.spec.base import Auto, Fraction, PositiveFloat, StrictSpec

GraphRecipe = Literal[
    "int8_static",
    "int8_static_per_tensor",
    "int8_static_entropy",
    "int8_static_percentile",
    "int8_static_excluded",
    "int8_dynamic",
    "int8_weight_only",
    "fp16",
    "bf16",
]
"""Recipes that change only the graph: seconds each. `fp16` and `bf16` are formats of a GPU; `bf16` runs on no CPU, and
convolutions have it from `export.opset: 22` on."""
ModelRecipe = Literal["prune", "distill"]
"""Recipes that train: a pruned network is fine-tuned, a student learns from the trained network. Each result goes
through the graph recipes too."""
TRAINING: frozenset[str] = frozenset(get_args(ModelRecipe))
MASKS = "sparse"
"""A recipe that was; `resolved.yaml` of older runs may name it."""


def _no_masks(value: Any) -> Any:
    if value == MASKS:
        raise ValueError(
            "the recipe sparse is gone: weights that are zero take as many bytes and as much time as others; use "
            "prune, which removes whole channels"
        )
    return value


Recipe = Annotated[GraphRecipe | ModelRecipe, BeforeValidator(_no_masks)]


class BudgetSpec(StrictSpec):
    """The largest loss of quality that is accepted, measured on the gate split."""

    metric: Auto | Literal["accuracy", "r2"] = "auto"
    """`auto`: accuracy for classification, R² for regression."""
    max_drop: Fraction = 0.01
    """Absolute: 0.01 is one percentage point."""

    @field_validator("max_drop")
    @classmethod
    def _provable(cls, value: float) -> float:
        if value <= 0:
            raise ValueError(
                "a budget of 0 cannot be proved by any number of samples; give the smallest drop you would accept, "
                "or set compress to null"
            )
        return value


class TargetSpec(StrictSpec):
    """What candidates are measured on, and what the best of the accepted ones has least of."""

    device: Literal["cpu", "gpu"] = "cpu"
    """`gpu` quantizes for TensorRT (symmetric INT8) and measures with ONNX Runtime's CUDA provider."""
    threads: Annotated[int, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(gt=0)] = 1
    """Rows a call when latency is measured."""
    minimize: Literal["latency", "size", "cost"] = "latency"
    """`latency`: milliseconds a call at `batch_size`; `size`: bytes of the file; `cost`: thread-milliseconds a row at
    the batch size with the best throughput."""


class PruneSpec(StrictSpec):
    """Structured pruning: whole channels are removed, then the network is fine-tuned on the training engine."""

    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (0.25, 0.5, 0.65)
    """Shares of channels to remove. They are bisected: the middle one first, then stronger or weaker ones."""
    scope: Literal["uniform", "global"] = "global"
    """`uniform`: the same share in every layer; `global`: the least important channels wherever they are."""
    importance: Literal["magnitude", "taylor"] = "magnitude"
    tracer: Literal["own", "torch_pruning"] = "own"
    """What finds the channels that must go together; `torch_pruning` needs the `prune` extra."""
    round_to: Annotated[int, Field(gt=0)] = 8
    """Channels that stay are a multiple of this: vector units work on 8 or 16 at a time."""
    epochs: Annotated[int, Field(gt=0)] = 10
    """Epochs of fine-tuning."""
    learning_rate: PositiveFloat = 1e-3
    distill: bool = True
    """Fine-tune towards the unpruned network's answers (see `distill` for temperature and mix)."""


class DistillSpec(StrictSpec):
    """A student learns from the trained network: soft targets at a temperature, mixed with the labels."""

    temperature: PositiveFloat = 3.0
    soft_share: Fraction = 0.7
    """Weight of the soft targets; the labels have the rest."""
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of matching the trained network's features before its last layer, added to the loss; 0 matches none."""
    width: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Width of the student as a multiple of the trained network's."""
    epochs: Annotated[int, Field(gt=0)] = 20
    learning_rate: PositiveFloat = 3e-3
    teachers: tuple[str, ...] = ()
    """Folders of bundles that teach together with the trained network; their logits are averaged."""


class ProxySpec(StrictSpec):
    """Cheap tests on a few calibration rows that stop a hopeless candidate before it is measured."""

    rows: Annotated[int, Field(gt=0)] = 256
    min_sqnr_db: float = 3.0
    """Least signal-to-noise ratio of the outputs against the float graph; only for graph recipes."""
    min_agreement: Fraction = 0.7
    """Least share of rows on which candidate and parent choose the same class."""


class CompressSpec(StrictSpec):
    """Compression of the exported graph, accepted or rejected by measurement."""

    recipes: Annotated[tuple[Recipe, ...], Field(min_length=1)] = ("int8_static",)
    """Tried from cheap to dear, whatever their order here."""
    budget: BudgetSpec = BudgetSpec()
    target: TargetSpec = TargetSpec()
    on_inconclusive: Literal["keep_baseline", "accept_point_estimate"] = "keep_baseline"
    """What happens when the gate split is too small to decide; the point estimate proves nothing."""
    max_class_drop: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Largest loss of recall of any one class; a class must lose more than two rows to break it."""
    calibration_rows: Annotated[int, Field(gt=0)] = 512
    percentile: Annotated[float, Field(gt=50, lt=100)] = 99.99
    """Share of activations that `int8_static_percentile` keeps inside the range, in percent."""
    proxy: ProxySpec = ProxySpec()
    prune: PruneSpec = PruneSpec()
    distill: DistillSpec = DistillSpec()
    dense_rival: bool = True
    """After pruning or distillation, also train a smaller dense network for the same time and compare."""
    concurrency: Annotated[int, Field(gt=0)] = 2
    """Graph trials that run at the same time, as Ray tasks of one CPU each."""

    @model_validator(mode="after")
    def _bf16_has_a_gpu(self) -> CompressSpec:
        if "bf16" in self.recipes and self.target.device != "gpu":
            raise ValueError("recipe bf16 needs target.device gpu: ONNX Runtime has no BF16 convolutions for CPUs")
        return self


def without_masks(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `compress` section of an older `resolved.yaml` without the recipe `sparse`, which made no variant.

    None where it was the only recipe: the float model was deployed.
    """
    kept = {name: value for name, value in section.items() if name != "sparsity"}
    kept["recipes"] = [recipe for recipe in section["recipes"] if recipe != MASKS]
    return kept if kept["recipes"] else None
