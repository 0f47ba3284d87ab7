"""A small transformer encoder over token ids (`data.encode.text: token_ids`), with padding masked out.

    ids -> token + position embedding -> attention and GELU blocks, norms first -> mean over real tokens -> head

Attention is written with torch's `scaled_dot_product_attention`: `nn.TransformerEncoderLayer` takes a fused operator
in eval mode that has no ONNX form.

Covered: one or more INT64 inputs (N, L), each with an embedding of its own; float inputs (N, F), joined before the
head. A row without a single token is all padding and gives the head a constant. Not covered: texts of varying length.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from cluster.bundle.signature import TensorSpec
from cluster.errors import ModelError
from cluster.spec.model import TransformerSpec

PADDING_ID = 0  # cluster/bundle/transforms/tokens.py
EMBEDDING_STD = 0.02  # of BERT (arXiv:1810.04805)


class Transformer(nn.Module):
    """(N, L) int64 and (N, F) float inputs -> (N, num_outputs) float32."""

    def __init__(self, spec: TransformerSpec, lengths: tuple[int | None, ...], num_features: int, outputs: int) -> None:
        """`lengths`: of each input in order, its number of tokens, or None where it is features."""
        super().__init__()
        self.is_tokens = tuple(length is not None for length in lengths)
        sizes = [length for length in lengths if length is not None]
        self.texts = nn.ModuleList(TextEncoder(spec, length) for length in sizes)
        self.head = nn.Linear(spec.width * len(sizes) + num_features, outputs)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        encoders = iter(self.texts)
        parts = [
            next(encoders)(tensor) if tokens else tensor.flatten(1).to(self.head.weight.dtype)
            for tensor, tokens in zip(inputs, self.is_tokens, strict=True)
        ]
        return self.head(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))


class TextEncoder(nn.Module):
    """(N, L) int64 ids -> (N, width)."""

    def __init__(self, spec: TransformerSpec, length: int) -> None:
        super().__init__()
        assert spec.vocabulary != "auto"
        self.tokens = nn.Embedding(spec.vocabulary, spec.width, padding_idx=PADDING_ID)
        self.positions = nn.Parameter(torch.empty(length, spec.width))
        self.dropout = nn.Dropout(spec.dropout)
        self.layers = nn.ModuleList(Layer(spec.width, spec.heads, spec.dropout) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)
        with torch.no_grad():
            self.positions.normal_(std=EMBEDDING_STD)
            self.tokens.weight.normal_(std=EMBEDDING_STD)
            self.tokens.weight[PADDING_ID] = 0.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        real = ids != PADDING_ID
        mask = torch.cat([torch.ones_like(real[:, :1]), real[:, 1:]], dim=1)  # a softmax over nothing is NaN
        mask = mask[:, None, None, :]
        values = self.dropout(self.tokens(ids) + self.positions)
        for layer in self.layers:
            values = layer(values, mask)
        weights = real.to(values.dtype).unsqueeze(-1)
        return (self.norm(values) * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


class Layer(nn.Module):
    """Self-attention, then a block of two linear maps; each with its norm before and a way around it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.block_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.block = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(N, L, width) -> the same; `mask` (N, 1, 1, L) is true where a token may be looked at."""
        joined = self.query_key_value(self.attention_norm(values))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        values = values + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return values + self.dropout(self.block(self.block_norm(values)))


def build_transformer(spec: TransformerSpec, inputs: tuple[TensorSpec, ...], num_outputs: int) -> nn.Module:
    """Raises ModelError when no input is token ids, or one can be neither."""
    lengths: list[int | None] = []
    for tensor in inputs:
        tokens = tensor.datatype == "INT64" and len(tensor.item_shape) == 1
        if -1 in tensor.item_shape or tensor.datatype == "BYTES" or not (tokens or tensor.datatype.startswith("FP")):
            raise _refused(inputs)
        lengths.append(tensor.item_shape[0] if tokens else None)
    if all(length is None for length in lengths):
        raise _refused(inputs)
    features = sum(
        torch.Size(tensor.item_shape).numel() for tensor, length in zip(inputs, lengths, strict=True) if length is None
    )
    return Transformer(spec, tuple(lengths), features, num_outputs)


def _refused(inputs: tuple[TensorSpec, ...]) -> ModelError:
    found = ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in inputs)
    return ModelError(
        "Cannot build a transformer",
        found=f"the inputs are {found}",
        rule="a transformer takes token ids (INT64 [-1, length]), and float features beside them",
        remedy="Token ids are made of text: declare a column of it in data.columns, or choose model.family: mlp.",
    )
