"""An export that is refused leaves the run's last good bundle whole, tells why, and asks the user to act (exit 2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cluster.atomic import hash_tree
from cluster.bundle.files import open_bundle
from cluster.errors import ModelError
from tests.integration.compress_tests.test_stages import run_until_export
from trainers.export import float_graph
from trainers.export.stage import run_export


class Odd(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.igamma(image.abs() + 1, image.abs()).flatten(1)[:, :10]


class FixedBatch(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(7, 64)[:, :10]


class Poisoned(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)[:, :10] / 0.0 * 0.0


CASES: list[tuple[type[nn.Module] | None, dict[str, Any], str]] = [
    (Odd, {}, "igamma has no ONNX form"),
    (FixedBatch, {}, "fixes axis 0 of 'image' to 7 rows"),
    (Poisoned, {}, "holds NaN or infinity"),
    (None, {"export": {"parity": {"absolute": 1e-30, "relative": 1e-30}}}, "differs from torch"),
    (None, {"export": {"fuse": ("normalize",)}}, "Cannot put normalize into the graph"),
]


def test_the_last_good_bundle_stays_whole(make_context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context, records = run_until_export(make_context, compress=None)
    before = hash_tree(context.run.bundle)
    for module, sections, told in CASES:
        refused = make_context("export", records, compress=None, **sections)
        with monkeypatch.context() as patch, pytest.raises(ModelError, match=told) as caught:
            if module is not None:
                patch.setattr(float_graph, "load_module", lambda *arguments, made=module: made().eval())
            run_export(refused)
        assert caught.value.exit_code == 2
        assert hash_tree(context.run.bundle) == before
        assert [path.name for path in context.run.path.iterdir() if path.name.startswith("bundle")] == ["bundle"]
    assert open_bundle(context.run.bundle).manifest.default_variant == "fp32"
