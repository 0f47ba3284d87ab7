"""`tracking`: where curves go besides the run folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import PositiveFloat, StrictSpec

Text = Annotated[str, Field(min_length=1)]


class MlflowSpec(StrictSpec):
    """An MLflow server or database. Needs the `trackers` extra."""

    uri: Text
    """`http://host:5000` of a server, or a database such as `sqlite:///mlflow.db`."""
    experiment: Text = "manta"
    """Made when it is not there."""


class WandbSpec(StrictSpec):
    """Weights & Biases. Needs the `trackers` extra; the key comes from WANDB_API_KEY or `wandb login`."""

    project: Text = "manta"
    entity: Text | None = None
    """User or team; the key's own when null."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into `wandb/` of the run folder, to be sent by `wandb sync`."""


class TrackingSpec(StrictSpec):
    """TensorBoard files lie in the run folder; the others are extras. A tracker that fails never stops a run."""

    tensorboard: bool = True
    mlflow: MlflowSpec | None = None
    wandb: WandbSpec | None = None
    timeout_s: PositiveFloat = 60.0
    """All trackers together may take this long when a run has ended; then the run goes on without them."""
