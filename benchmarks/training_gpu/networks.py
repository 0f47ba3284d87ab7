"""The two networks that are measured, in plain torch, the same object for both sides.

ResNet-50: arXiv:1512.03385, stride in the 3×3 convolution (v1.5), 25.6 M parameters. BERT-base: arXiv:1810.04805,
12 layers of 768, 12 heads, a classifier on the first token, 109 M parameters. `scale` shrinks both for a dry run.
"""

from __future__ import annotations

import torch
from torch import nn

STAGES = (3, 4, 6, 3)
IMAGE, CLASSES = 224, 1000
TOKENS, VOCABULARY, LABELS = 128, 30522, 2


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a way around."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        same = inputs == 4 * width and stride == 1
        around = (nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.around = nn.Identity() if same else nn.Sequential(*around)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.main(x) + self.around(x))


def build_resnet50(scale: int = 1) -> nn.Module:
    """(N, 3, H, W) float32 -> (N, 1000)."""
    width = 64 // scale
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = width
    for stage, blocks in enumerate(STAGES):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width << stage, 2 if stage and not block else 1))
            inputs = 4 * (width << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


class Bert(nn.Module):
    """Token and position embeddings, encoder, classifier."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(TOKENS, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(0.1)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, LABELS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.dropout(self.norm(self.tokens(tokens) + self.positions(places)))
        return self.head(torch.tanh(self.pooler(self.encoder(hidden)[:, 0])))


def build_bert_base(scale: int = 1) -> nn.Module:
    """(N, T) int64 -> (N, 2)."""
    return Bert(768 // scale, 12 // scale, 12 // scale)
