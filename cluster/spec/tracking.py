"""`tracking`: where curves go besides the run folder."""

from __future__ import annotations

from cluster.spec.base import StrictSpec


class TrackingSpec(StrictSpec):
    """TensorBoard files lie in the run folder always; the others are extras."""

    tensorboard: bool = True
