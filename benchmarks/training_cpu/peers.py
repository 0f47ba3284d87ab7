"""The other side: hand-written loops, Accelerate, Lightning; the same model, data, batch, optimizer and threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from benchmarks.training_cpu.ours import CNN, CNN_BATCH, MLP_BATCH


def _now() -> tuple[float, float]:
    """Wall clock and CPU seconds of this process."""
    return time.monotonic(), time.process_time()


def _since(started: tuple[float, float]) -> tuple[float, float]:
    return time.monotonic() - started[0], time.process_time() - started[1]


def _tensors(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.from_numpy(np.load(folder / "train" / "inputs.x.npy")),
        torch.from_numpy(np.load(folder / "train" / "targets.npy")),
    )


def _mlp() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(100, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def mlp_raw(folder: Path) -> tuple[float, float]:
    """Tensors in memory, one gather a batch, fused AdamW, cosine."""
    x, y = _tensors(folder / "mlp")
    model = _mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    steps = -(-len(x) // MLP_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    started = _now()
    order = torch.randperm(len(x))
    for at in range(0, len(x), MLP_BATCH):
        rows = order[at : at + MLP_BATCH]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return _since(started)


def mlp_accelerate(folder: Path) -> tuple[float, float]:
    """As its documentation shows: DataLoader, prepare, accelerator.backward."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(cpu=True)
    x, y = _tensors(folder / "mlp")
    loader = DataLoader(TensorDataset(x, y), batch_size=MLP_BATCH, shuffle=True)
    model = _mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    started = _now()
    for inputs, targets in loader:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        schedule.step()
    return _since(started)


def mlp_lightning(folder: Path) -> tuple[float, float]:
    """Trainer without logger, checkpoints, bar and summary: its fastest documented form."""
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = _mlp()

        def training_step(self, batch: tuple, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-3, fused=True)

        def on_train_epoch_start(self) -> None:
            self.started = _now()

        def on_train_epoch_end(self) -> None:
            self.seconds = _since(self.started)

    x, y = _tensors(folder / "mlp")
    loader = DataLoader(TensorDataset(x, y), batch_size=MLP_BATCH, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    trainer.fit(module, loader)
    return module.seconds


def _cnn_ddp(folder: Path, accumulate: int) -> tuple[float, float]:
    """DDP with `no_sync` for all but the last micro-batch, DistributedSampler's order, loss / K (all are equal)."""
    from torch.nn.parallel import DistributedDataParallel

    from cluster.spec.model import CnnSpec
    from trainers.models.cnn import Cnn

    x, y = _tensors(folder / "cnn")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(7)
    net = Cnn((3, 32, 32), CnnSpec(**CNN), 10)
    model = DistributedDataParallel(net, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    micro = CNN_BATCH // world // accumulate
    dist.barrier()
    started = _now()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[rank::world]
    for step in range(len(order) // (micro * accumulate)):
        optimizer.zero_grad(set_to_none=True)
        for k in range(accumulate):
            at = (step * accumulate + k) * micro
            rows = order[at : at + micro]
            with nullcontext() if k == accumulate - 1 else model.no_sync():
                (F.cross_entropy(model(x[rows]), y[rows]) / accumulate).backward()
        optimizer.step()
    return _since(started)


RUNNERS: dict[str, Callable[[Path], tuple[float, float]]] = {
    "mlp_raw": mlp_raw,
    "mlp_accelerate": mlp_accelerate,
    "mlp_lightning": mlp_lightning,
    "cnn_ddp": lambda folder: _cnn_ddp(folder, 1),
    "cnn_ddp_8": lambda folder: _cnn_ddp(folder, 8),
}
