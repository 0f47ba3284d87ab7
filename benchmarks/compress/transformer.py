"""The shipped transformer on SMS messages, trained here and exported: what `manta compress` gets as a bare ONNX file.

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
from cluster.spec.model import TransformerSpec
from trainers.export.onnx import export_onnx
from trainers.export.parity import check_parity
from trainers.models import build_model

LENGTH, VOCABULARY = 32, 4000
SPEC = TransformerSpec(family="transformer", width=256, layers=2, heads=4, vocabulary=VOCABULARY)
EPOCHS, BATCH_ROWS, RATE, SEED = 3, 32, 5e-4, 7
TRAIN_ROWS = 2574  # the other 3,000 calibrate and gate
OPSET = 20
WORD = re.compile(r"[a-z']+|[0-9]+|[^\sa-z0-9]")
INPUT = (TensorSpec(name="tokens", datatype="INT64", shape=(-1, LENGTH)),)


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
    module = build_model(SPEC, INPUT, 2).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.01)
    x, y = torch.from_numpy(tokens), torch.from_numpy(targets)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(BATCH_ROWS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    return module.eval()
