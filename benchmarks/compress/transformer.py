"""A small transformer on SMS messages, trained here and exported: what `manta compress` gets as a bare ONNX file.

Tokens are the most frequent words of the training rows; a row is cut or filled to `LENGTH` of them.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.bundle.signature import TensorSpec
from cluster.spec.export import ParitySpec
from trainers.export.onnx import export_onnx
from trainers.export.parity import check_parity

LENGTH, VOCABULARY = 32, 4000
WIDTH, HEADS, HIDDEN, LAYERS = 256, 4, 1024, 2
EPOCHS, BATCH_ROWS, RATE, SEED = 3, 32, 5e-4, 7
TRAIN_ROWS = 2574  # the other 3,000 calibrate and gate
OPSET = 20
WORD = re.compile(r"[a-z']+|[0-9]+|[^\sa-z0-9]")
INPUT = (TensorSpec(name="tokens", datatype="INT64", shape=(-1, LENGTH)),)


class Layer(nn.Module):
    """One pre-norm encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mixed, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """(N, LENGTH, WIDTH) and (N, 1, 1, LENGTH) -> (N, LENGTH, WIDTH)."""
        heads = self.mixed(self.before(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        scores = heads[0] @ heads[1].transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        mixed = (scores + padding).softmax(-1) @ heads[2]
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.relu(self.wide(self.between(x))))


class Transformer(nn.Module):
    """(N, LENGTH) int64 word numbers, 0 is filling -> (N, 2) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        real = (tokens != 0).to(torch.float32)
        padding = (1 - real)[:, None, None, :] * -1e4
        x = self.words(tokens) + self.places
        for layer in self.layers:
            x = layer(x, padding)
        x = self.norm(x) * real[:, :, None]
        return self.head(x.sum(1) / real.sum(1, keepdim=True).clamp_min(1.0))


def read_messages(path: Path) -> tuple[list[list[str]], np.ndarray]:
    """Words of every message, and 1 for spam."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [WORD.findall(row["text"].lower()) for row in rows], np.array([row["isspam"] == "spam" for row in rows])


def prepare(path: Path, folder: Path) -> tuple[Path, Path]:
    """Train, export, and write the held-out rows; returns (ONNX file, npz file)."""
    words, spam = read_messages(path)
    order = np.random.default_rng(SEED).permutation(len(words))
    train, held = order[:TRAIN_ROWS], order[TRAIN_ROWS:]
    common = Counter(word for row in train for word in words[row]).most_common(VOCABULARY - 2)
    number = {word: i + 2 for i, (word, _) in enumerate(common)}
    tokens = np.zeros((len(words), LENGTH), np.int64)
    for i, row in enumerate(words):
        ids = [number.get(word, 1) for word in row[:LENGTH]]
        tokens[i, : len(ids)] = ids
    targets = spam.astype(np.int64)
    module = train_transformer(tokens[train], targets[train])
    folder.mkdir(parents=True, exist_ok=True)
    graph, rows = folder / "transformer.onnx", folder / "rows.npz"
    example = {"tokens": tokens[held[:9]]}
    export_onnx(module, INPUT, example, graph, opset=OPSET)
    check_parity(module, graph, example, ParitySpec())
    np.savez(rows, tokens=tokens[held], targets=targets[held])
    return graph, rows


def train_transformer(tokens: np.ndarray, targets: np.ndarray) -> nn.Module:
    """Plain AdamW: the training engine has benchmarks of its own."""
    torch.manual_seed(SEED)
    module = Transformer()
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.01)
    x, y = torch.from_numpy(tokens), torch.from_numpy(targets)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(BATCH_ROWS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    return module.eval()
