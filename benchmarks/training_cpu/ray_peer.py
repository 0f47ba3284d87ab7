"""A plain Ray TorchTrainer as Ray's documentation shows it, for one epoch of digits: what `manta train` is held
against. Two workers or as many as asked for, DDP, AdamW, the same rows, batch, network and split sizes; validation loss
after the epoch.

    python -m benchmarks.training_cpu.ray_peer FOLDER [WORKERS]

writes FOLDER/first_update (Unix time after the first optimizer step) and lets Ray keep its results in FOLDER.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def train_function(config: dict) -> None:
    """Runs in each worker."""
    import torch
    from ray import train
    from ray.train.torch import prepare_data_loader, prepare_model
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    images, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7)).numpy()
    x = torch.tensor(images[order] / 16, dtype=torch.float32)
    y = torch.tensor(targets[order])
    rows = config["rows_train"]
    loader = prepare_data_loader(DataLoader(TensorDataset(x[:rows], y[:rows]), batch_size=32, shuffle=True))
    model = prepare_model(
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    if train.get_context().get_world_size() > 1:
        loader.sampler.set_epoch(0)
    first = True
    for inputs, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        if first and train.get_context().get_world_rank() == 0:
            Path(config["folder"], "first_update").write_text(str(time.time()))
        first = False
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x[rows:]), y[rows:]))
    train.report({"loss": loss})


def main(folder: str, workers: str = "2") -> None:
    """The driver of the documentation's quickstart."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", num_cpus=8)  # never a cluster that happens to run on this machine
    TorchTrainer(
        train_function,
        train_loop_config={"folder": folder, "rows_train": 1437},
        scaling_config=ScalingConfig(num_workers=int(workers)),
        run_config=RunConfig(name="peer", storage_path=folder),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
