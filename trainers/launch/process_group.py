"""The process group of Ray Train workers, on the network interface that Ray itself uses.

Invariant: gloo and NCCL use the interface of each node's own Ray address before the group is made; a node whose
host name resolves to 127.0.0.1 would else announce that address to the others, and gloo would fail.

Covered: CPU (gloo) and GPU (NCCL). Not covered: TPU.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import Any

from ray.train.torch import TorchConfig

from cluster.runtime.ray_private import torch_backend_class
from cluster.spec.train import TrainSpec
from trainers.loop.parts.deterministic import prepare_process

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_Backend: Any = torch_backend_class()


class InterfaceBackend(_Backend):
    """Ray's own backend, after naming the interface and setting CUDA's variables on every worker."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        worker_group.execute(prepare_process, backend_config.train)  # before the process group starts CUDA
        super().on_start(worker_group, backend_config)


@dataclass
class InterfaceTorchConfig(TorchConfig):
    """`TorchConfig` whose backend is the one above."""

    train: TrainSpec = field(default_factory=TrainSpec)

    @property
    def backend_cls(self) -> type[InterfaceBackend]:
        return InterfaceBackend


def name_interface() -> str | None:
    """Set the variables that the user has not set, from this node's Ray address. Runs in each worker."""
    import ray.util

    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, interface)
    return interface


def interface_of(address: str) -> str | None:
    """Name of the network interface that has `address`, or None."""
    import psutil

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.family == family and item.address.partition("%")[0] == address for item in addresses):
            return name
    return None
