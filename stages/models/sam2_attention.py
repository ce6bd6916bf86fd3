"""Attention between few tokens and many cells, as SAM2's mask decoder has it, with the cells' projections left out.

The image side has thousands of cells and the prompt side eight tokens, so that projections are moved from the one to
the other by associativity: Q (K W)' = (Q W') K', and (P V) W = P (V W). The numbers stay, up to rounding. Architecture:
the two-way transformer of SAM (arXiv 2304.02643), `sam2/modeling/sam/transformer.py` of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock


FEW_ROWS: Final = 32
"""Up to so many rows of keys, products with the positions cost less than positions added to cells."""


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

    def from_image(self, seen: Tensor) -> Tensor:
        """Let n tokens attend to cells whose keys and values are never computed.

        Parameters
        ----------
        seen : Tensor, (Q, heads * n, C)
            Means of the cells without positions, weighted by softmax of their products, positions included, with
            `key_rows`.

        Returns
        -------
        Tensor, (Q, n, C)
        """
        by_head = parted(seen, 1, self.heads, -1)
        weight, bias = self.by_head(self.value), self.value[1].view(self.heads, 1, -1)
        return self.joined(by_head @ weight.transpose(1, 2) + bias)

    def key_rows(self, tokens: Tensor) -> Tensor:
        """Rows whose product with a cell is its score with a token, (Q, heads * n, C).

        The bias of the keys adds the same to all scores of a token, and the softmax takes it away.
        """
        queries = self.split(tokens, self.query) * self.scale
        return (queries @ self.by_head(self.key)).flatten(1, 2)

    def change(self, placed: Tensor, tokens: Tensor, norm: LayerNorm) -> Change:
        """What attention to n tokens, (Q, n, C), with and without their own prompts, makes of cells."""
        scaled = self.split(placed, self.key) * self.scale
        offsets = (scaled * self.query[1].view(self.heads, 1, -1)).sum(dim=-1, keepdim=True)
        rows = scaled @ self.by_head(self.query)
        return Change(rows.flatten(1, 2), offsets.flatten(1, 2), self.value_rows(tokens), self.heads, norm)

    def value_rows(self, tokens: Tensor) -> Tensor:
        """What each token adds to a cell that attends to it alone, (Q, heads * n, C), the output's bias included."""
        values = self.split(tokens, self.value)
        out = parted(self.out[0], 1, self.heads, -1).permute(1, 2, 0)
        return (values @ out + self.out[1] / self.heads).flatten(1, 2)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm's weights; a function of (..., C)."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: torch.nn.LayerNorm, dtype: torch.dtype) -> LayerNorm:
        """Take a module's weights."""
        return cls(norm.weight.detach().to(dtype), norm.bias.detach().to(dtype), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Change:
    """What cells become by attention to a prompt's tokens, for Q prompts, H heads, n tokens, then a layer norm."""

    rows: Tensor
    """(Q, H * n, C): a token's score for a cell is the product with the cell and its position, plus the offset."""
    offsets: Tensor
    """(Q, H * n, 1)."""
    values: Tensor
    """(Q, H * n, C): what a token adds to a cell that attends to it alone."""
    heads: int
    norm: LayerNorm

    def take(self, prompts: Tensor) -> Change:
        """Change by some of the prompts."""
        return replace(self, rows=self.rows[prompts], offsets=self.offsets[prompts], values=self.values[prompts])


class Cells(Protocol):
    """Cells of an image as Q prompts have changed them, (Q, N, C), written out or not."""

    def take(self, prompts: Tensor) -> Cells:
        """Cells of some of the prompts."""
        ...

    def changed(self, change: Change) -> Cells:
        """Cells after one more change."""
        ...

    def read(self, rows: Tensor) -> Tensor:
        """Means of the cells for rows of keys, (Q, R, C) to (Q, R, C); see `Projection.from_image`."""
        ...

    def written(self) -> Tensor:
        """All of them, (Q, N, C)."""
        ...


class WrittenCells:
    """Cells in memory.

    Parameters
    ----------
    cells : Tensor, (Q, N, C)
        Without positions.
    positions : Tensor, (1, N, C)
        The same for all prompts.
    """

    def __init__(self, cells: Tensor, positions: Tensor) -> None:
        self._cells = cells
        self._positions = positions
        self._placed: Tensor | None = None

    def take(self, prompts: Tensor) -> WrittenCells:
        """Cells of some of the prompts."""
        return WrittenCells(self._cells[prompts], self._positions)

    def changed(self, change: Change) -> WrittenCells:
        """Cells after one more change."""
        scores = parted(self._scores(change.rows) + change.offsets, 1, change.heads, -1)
        shares = scores.softmax(dim=2).flatten(1, 2).transpose(1, 2)
        return WrittenCells(change.norm(torch.baddbmm(self._cells, shares, change.values)), self._positions)

    def read(self, rows: Tensor) -> Tensor:
        """Means of the cells for rows of keys."""
        return torch.bmm(self._scores(rows).softmax(dim=-1), self._cells)

    def written(self) -> Tensor:
        """All of them."""
        return self._cells

    def _scores(self, rows: Tensor) -> Tensor:
        """Products of rows with the cells and their positions, (Q, R, N)."""
        if rows.shape[1] <= FEW_ROWS:
            return torch.baddbmm(rows @ self._positions[0].T, rows, self._cells.transpose(1, 2))
        if self._placed is None:
            self._placed = self._cells + self._positions
        return torch.bmm(rows, self._placed.transpose(1, 2))


class Layer:
    """Weights of one block of the two-way transformer."""

    def __init__(self, block: TwoWayAttentionBlock, dtype: torch.dtype) -> None:
        self.among_tokens = Projection.of(block.self_attn, dtype)
        self.to_image = Projection.of(block.cross_attn_token_to_image, dtype)
        self.to_tokens = Projection.of(block.cross_attn_image_to_token, dtype)
        norms = (block.norm1, block.norm2, block.norm3, block.norm4)
        self.norms = [LayerNorm.of(norm, dtype) for norm in norms]
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
