"""Attention between few tokens and many cells, as SAM2's mask decoder has it, with the cells' projections left out.

The image side has thousands of cells and the prompt side eight tokens, so that projections are moved from the one to
the other by associativity: Q (K W)' = (Q W') K', and (P V) W = P (V W). The numbers stay, up to rounding. Architecture:
the two-way transformer of SAM (arXiv 2304.02643), `sam2/modeling/sam/transformer.py` of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock


@dataclass(frozen=True, slots=True)
class Projection:
    """Weights of one attention, by head; I is its inner width, d = I / heads."""

    heads: int
    query: tuple[Tensor, Tensor]
    key: tuple[Tensor, Tensor]
    value: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, attention: Attention, dtype: torch.dtype) -> Projection:
        """Weights of one of the package's attentions."""
        parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
        pairs = [(p.weight.detach().to(dtype), p.bias.detach().to(dtype)) for p in parts]
        return cls(attention.num_heads, *pairs)

    @property
    def scale(self) -> float:
        """1 / sqrt(d)."""
        return 1 / math.sqrt(self.query[0].shape[0] // self.heads)

    def split(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """Project (..., n, C) and separate the heads, (..., heads, n, d)."""
        projected: Tensor = F.linear(x, *weights)
        return parted(projected, -1, self.heads, -1).transpose(-3, -2)

    def by_head(self, weights: tuple[Tensor, Tensor]) -> Tensor:
        """Weights of a projection into the inner width, (heads, d, C)."""
        return parted(weights[0], 0, self.heads, -1)

    def joined(self, x: Tensor) -> Tensor:
        """Bring (..., heads, n, d) together and project out, (..., n, C)."""
        projected: Tensor = F.linear(x.transpose(-3, -2).flatten(-2), *self.out)
        return projected

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend as the package does: (..., n, C) to (..., m, C)."""
        queries, keys = self.split(q, self.query), self.split(k, self.key)
        return self.joined(F.scaled_dot_product_attention(queries, keys, self.split(v, self.value)))

    def from_image(self, cells: Tensor, scores: Tensor) -> Tensor:
        """Let n tokens attend to N cells whose keys and values are never computed.

        Parameters
        ----------
        cells : Tensor, (Q, N, C)
            Without positions: the values.
        scores : Tensor, (Q, heads * n, N)
            Products of `key_rows` with the cells and their positions.

        Returns
        -------
        Tensor, (Q, n, C)
        """
        seen = parted(torch.bmm(scores.softmax(dim=-1), cells), 1, self.heads, -1)
        weight, bias = self.by_head(self.value), self.value[1].view(self.heads, 1, -1)
        return self.joined(seen @ weight.transpose(1, 2) + bias)

    def key_rows(self, tokens: Tensor) -> Tensor:
        """Rows whose product with a cell is its score with a token, (Q, heads * n, C).

        The bias of the keys adds the same to all scores of a token, and the softmax takes it away.
        """
        queries = self.split(tokens, self.query) * self.scale
        return (queries @ self.by_head(self.key)).flatten(1, 2)

    def query_rows(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Rows, (Q, heads * n, C), and offsets, (Q, heads * n, 1): a cell's scores, as the cell attends to tokens."""
        scaled = keys * self.scale
        offsets = (scaled * self.query[1].view(self.heads, 1, -1)).sum(dim=-1, keepdim=True)
        return (scaled @ self.by_head(self.query)).flatten(1, 2), offsets.flatten(1, 2)

    def value_rows(self, tokens: Tensor) -> Tensor:
        """What each token adds to a cell that attends to it alone, (Q, heads * n, C), the output's bias included."""
        values = self.split(tokens, self.value)
        out = parted(self.out[0], 1, self.heads, -1).permute(1, 2, 0)
        return (values @ out + self.out[1] / self.heads).flatten(1, 2)


class Layer:
    """Weights of one block of the two-way transformer."""

    def __init__(self, block: TwoWayAttentionBlock, dtype: torch.dtype) -> None:
        self.among_tokens = Projection.of(block.self_attn, dtype)
        self.to_image = Projection.of(block.cross_attn_token_to_image, dtype)
        self.to_tokens = Projection.of(block.cross_attn_image_to_token, dtype)
        self.norms = [layer_norm(n, dtype) for n in (block.norm1, block.norm2, block.norm3, block.norm4)]
        self._mlp = [(part.weight.detach().to(dtype), part.bias.detach().to(dtype)) for part in block.mlp.layers]

    def tokens_after_image(self, queries: Tensor, found: Tensor) -> Tensor:
        """Add what was found in the image, and run the MLP."""
        queries = self.norms[1](queries + found)
        hidden = F.linear(queries, *self._mlp[0]).relu()
        return self.norms[2](queries + F.linear(hidden, *self._mlp[1]))


def parted(x: Tensor, dim: int, *sizes: int) -> Tensor:
    """Divide an axis into several."""
    divided: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return divided


def layer_norm(norm: torch.nn.LayerNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a layer norm as a function."""
    weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, norm.eps)
