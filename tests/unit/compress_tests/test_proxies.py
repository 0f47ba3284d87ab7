"""A first look at a few rows: the hopeless are stopped, the equal pass."""

from __future__ import annotations

import numpy as np

from cluster.spec.compress import ProxySpec
from trainers.compress.proxies import compare_outputs


def test_proxies_stop_the_hopeless_and_pass_the_equal() -> None:
    outputs = np.random.default_rng(0).normal(size=(64, 5))
    assert compare_outputs(outputs, outputs, classification=True).hopeless(ProxySpec()) is None
    noise = compare_outputs(outputs, -outputs, classification=True)
    assert "signal-to-noise" in (noise.hopeless(ProxySpec()) or "")
    assert "agrees" in (noise.hopeless(ProxySpec(min_sqnr_db=-300.0)) or "")
    assert compare_outputs(outputs, outputs * np.nan, classification=True).hopeless(ProxySpec()) is not None
