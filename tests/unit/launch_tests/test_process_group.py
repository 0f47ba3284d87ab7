"""The environment of every Ray Train worker before its process group, and so CUDA, starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ray.train.torch.config import _TorchBackend

from cluster.spec.train import TrainSpec
from trainers.launch.process_group import InterfaceTorchConfig, name_interface
from trainers.loop.parts.deterministic import prepare_process


def test_workers_are_prepared_before_the_process_group_starts_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Group:
        def execute(self, function: Callable[..., Any], *arguments: Any) -> None:
            told.append((function, *arguments))

    monkeypatch.setattr(_TorchBackend, "on_start", lambda *_: told.append("process group"))
    config = InterfaceTorchConfig(timeout_s=5, train=TrainSpec(deterministic=True))
    config.backend_cls().on_start(Group(), config)
    assert told == [(name_interface,), (prepare_process, config.train), "process group"]
