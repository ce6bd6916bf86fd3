"""SAM2's mask decoder for many prompts on few images: the package's numbers, rearranged so that less is computed.

Nothing is approximated. The image side has thousands of cells and the prompt side eight tokens, so that projections
are moved from the one to the other by associativity: Q (K W)' = (Q W') K', and (P V) W = P (V W). What the first layer
makes of the image alone is computed once for an image. The IoU head reads the tokens only, so it comes first, and only
masks that someone wants are upscaled. Transposed convolutions of kernel and stride 2 are products of cells, which
keep their order until the mask is whole. Architecture: SAM2 (arXiv 2408.00714), `sam2/modeling/sam` of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.transformer import Attention, TwoWayAttentionBlock

MASKS: Final = 4
"""Masks of one prompt: the single one, then the three of the multimask output."""
LAYER_NORM_2D_EPS: Final = 1e-6


class ImageMaps(NamedTuple):
    """What the decoder needs of B images of N cells; computed once for an image, whatever is asked of it."""

    source: Tensor
    """(B, N, C), embedding with the dense prompt of `no mask`."""
    keys: Tensor
    """(B, heads, N, d), of the first layer's attention from tokens to image."""
    values: Tensor
    """(B, heads, N, d), of the same."""
    queries: Tensor
    """(B, heads, N, d), of the first layer's attention from image to tokens."""
    middle: Tensor
    """(B, N, 4, C / 4), features at twice the resolution, the four parts of each cell together."""
    fine: Tensor
    """(B, N, 16, C / 8), features at four times the resolution, in the same manner."""


class Answer(NamedTuple):
    """What the transformer makes of P prompts on each of B images."""

    cells: Tensor
    """(B, P, N, C)."""
    mask_tokens: Tensor
    """(B, P, 4, C)."""
    predicted_iou: Tensor
    """(B, P, 4) float32."""


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

    def from_image(self, tokens: Tensor, cells: Tensor, scores: Tensor) -> Tensor:
        """Let n tokens attend to N cells whose keys and values are never computed.

        Parameters
        ----------
        tokens : Tensor, (Q, n, C)
            With their positions.
        cells : Tensor, (Q, N, C)
            Without positions: the values.
        scores : Tensor, (Q, heads * n, N)
            What `key_scores` returned.

        Returns
        -------
        Tensor, (Q, n, C)
        """
        seen = parted(torch.bmm(scores.softmax(dim=-1), cells), 1, self.heads, -1)
        weight, bias = self.by_head(self.value), self.value[1].view(self.heads, 1, -1)
        return self.joined((seen @ weight.transpose(1, 2) + bias).to(tokens.dtype))

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


class SharedDecoder:
    """A mask decoder, its weights taken from the package's.

    Parameters
    ----------
    decoder : MaskDecoder
        Loaded, on its device.
    dense_pe : Tensor, (1, C, h, w)
        Positions of the cells.
    no_mask : Tensor, (1, C)
        Dense prompt where no mask is given.
    dtype : torch.dtype
        What is computed in.
    """

    def __init__(self, decoder: MaskDecoder, dense_pe: Tensor, no_mask: Tensor, dtype: torch.dtype) -> None:
        self._decoder = decoder
        self.channels = dense_pe.shape[1]
        self._dtype = dtype
        self._shape = dense_pe.shape[-2:]
        self._positions = dense_pe.flatten(2).transpose(1, 2).to(dtype)
        self._no_mask = no_mask.detach().to(dtype)
        transformer = decoder.transformer
        self._first, self._second = (_Layer(layer, dtype) for layer in transformer.layers)
        self._final = Projection.of(transformer.final_attn_token_to_image, dtype)
        self._final_norm = _norm(transformer.norm_final_attn, dtype)
        first, norm, _, second, _ = decoder.output_upscaling
        self._up = [_cell_weights(convolution, dtype) for convolution in (first, second)]
        self._up_norm = (norm.weight.detach().to(dtype), norm.bias.detach().to(dtype))

    def maps(self, embedding: Tensor, fine: Tensor, middle: Tensor) -> ImageMaps:
        """Prepare B images.

        Parameters
        ----------
        embedding : Tensor, (B, C, h, w)
            From the image encoder.
        fine, middle : Tensor, (B, C / 8, 4 h, 4 w) and (B, C / 4, 2 h, 2 w)
            High-resolution features.
        """
        source = embedding.flatten(2).transpose(1, 2).to(self._dtype) + self._no_mask
        placed = source + self._positions
        to_image, to_tokens = self._first.to_image, self._first.to_tokens
        return ImageMaps(
            source,
            to_image.split(placed, to_image.key),
            to_image.split(source, to_image.value),
            to_tokens.split(placed, to_tokens.query),
            _in_cells(middle.to(self._dtype), 1),
            _in_cells(fine.to(self._dtype), 2),
        )

    def answer(self, maps: ImageMaps, prompts: Tensor) -> Answer:
        """Run the transformer and the IoU head.

        Parameters
        ----------
        maps : ImageMaps
            Of B images.
        prompts : Tensor, (B, P, n, C)
            Embedded points.
        """
        n_images, n_prompts = prompts.shape[:2]
        decoder = self._decoder
        own = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if decoder.pred_obj_scores:
            own.insert(0, decoder.obj_score_token.weight)
        fixed = torch.cat(own).detach().to(self._dtype)
        tokens = torch.cat((fixed.expand(n_images * n_prompts, -1, -1), prompts.flatten(0, 1).to(self._dtype)), dim=1)
        queries, cells = self._first_layer(maps, tokens, n_prompts)
        queries, cells = self._second_layer(queries, cells, tokens)
        rows = self._final.key_rows(queries + tokens)
        scores = torch.baddbmm(rows @ self._positions[0].T, rows, cells.transpose(1, 2))
        queries = self._final_norm(queries + self._final.from_image(queries, cells, scores))
        at = len(own) - 2
        iou = decoder.iou_prediction_head(queries[:, at].float())
        shape = (n_images, n_prompts)
        masks = queries[:, at + 1 : at + 1 + MASKS]
        return Answer(*(parted(x, 0, *shape) for x in (cells, masks, iou.float())))

    def upscale(self, maps: ImageMaps, answer: Answer, wanted: Tensor) -> Tensor:
        """Logits of some masks.

        Parameters
        ----------
        maps : ImageMaps
            The same.
        answer : Answer
            To its prompts.
        wanted : Tensor of bool, (B, P, 4)
            M of them are true.

        Returns
        -------
        Tensor of float32, (M, 4 h, 4 w)
            In the order of the images, their prompts and their masks.
        """
        image, prompt = wanted.any(dim=2).nonzero(as_tuple=True)
        decoder = self._decoder
        tokens = answer.mask_tokens[image, prompt].float()
        heads = [decoder.output_hypernetworks_mlps[i](tokens[:, i]) for i in range(MASKS)]
        cells = answer.cells[image, prompt]
        up = _up(cells, self._up[0]) + maps.middle[image]
        up = F.gelu(F.layer_norm(up, up.shape[-1:], *self._up_norm, eps=LAYER_NORM_2D_EPS))
        up = F.gelu(_up(up, self._up[1]).flatten(2, 3) + maps.fine[image])
        products = up.flatten(1, 2) @ torch.stack(heads, dim=2).to(self._dtype)
        height, width = self._shape
        # (K, h, w, y of 2, x of 2, y of 4, x of 4, 4): rows are cell, half, quarter.
        parts = products.view(len(image), height, width, 2, 2, 2, 2, MASKS).permute(0, 7, 1, 3, 5, 2, 4, 6)
        chosen = wanted[image, prompt]
        return parts[chosen].float().reshape(-1, 4 * height, 4 * width)

    def _first_layer(self, maps: ImageMaps, tokens: Tensor, n_prompts: int) -> tuple[Tensor, Tensor]:
        layer = self._first
        queries = layer.norms[0](layer.among_tokens.plain(tokens, tokens, tokens))
        asked = layer.to_image.split(queries + tokens, layer.to_image.query)
        # All prompts of an image attend to the same cells: their tokens form one long sequence.
        together = _per_image(asked, n_prompts).transpose(1, 2).flatten(2, 3)
        found = F.scaled_dot_product_attention(together, maps.keys, maps.values)
        found = parted(found, 2, n_prompts, -1).transpose(1, 2).flatten(0, 1)
        queries = layer.tokens_after_image(queries, layer.to_image.joined(found))
        attention = layer.to_tokens
        keys = _per_image(attention.split(queries + tokens, attention.key), n_prompts).transpose(1, 2)
        scores = (keys.flatten(2, 3) * attention.scale) @ maps.queries.transpose(-2, -1)
        weights = parted(scores, 2, n_prompts, -1).softmax(dim=3).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        source = maps.source.repeat_interleave(n_prompts, dim=0)
        cells = torch.baddbmm(source, weights.transpose(1, 2), attention.value_rows(queries))
        return queries, layer.norms[3](cells)

    def _second_layer(self, queries: Tensor, cells: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        layer = self._second
        placed = queries + tokens
        queries = layer.norms[0](queries + layer.among_tokens.plain(placed, placed, queries))
        placed_cells = (cells + self._positions).transpose(1, 2)
        asked = queries + tokens
        scores = torch.bmm(layer.to_image.key_rows(asked), placed_cells)
        queries = layer.tokens_after_image(queries, layer.to_image.from_image(asked, cells, scores))
        attention = layer.to_tokens
        rows, offsets = attention.query_rows(attention.split(queries + tokens, attention.key))
        scores = torch.bmm(rows, placed_cells) + offsets
        weights = parted(scores, 1, attention.heads, -1).softmax(dim=2).flatten(1, 2)
        cells = torch.baddbmm(cells, weights.transpose(1, 2), attention.value_rows(queries))
        return queries, layer.norms[3](cells)


class _Layer:
    """One block of the two-way transformer."""

    def __init__(self, block: TwoWayAttentionBlock, dtype: torch.dtype) -> None:
        self.among_tokens = Projection.of(block.self_attn, dtype)
        self.to_image = Projection.of(block.cross_attn_token_to_image, dtype)
        self.to_tokens = Projection.of(block.cross_attn_image_to_token, dtype)
        self.norms = [_norm(n, dtype) for n in (block.norm1, block.norm2, block.norm3, block.norm4)]
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


def _norm(norm: torch.nn.LayerNorm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    return lambda x: F.layer_norm(x, weight.shape, weight, bias, norm.eps)


def _per_image(x: Tensor, n_prompts: int) -> Tensor:
    return parted(x, 0, -1, n_prompts)


def _cell_weights(convolution: torch.nn.ConvTranspose2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight, (4 * out, in), y and x of the part before the channel, and bias, (4 * out,)."""
    weight, bias = convolution.weight.detach().permute(2, 3, 1, 0).flatten(0, 2), convolution.bias
    if bias is None:
        raise ValueError("the decoder's transposed convolutions have a bias")
    return weight.to(dtype).contiguous(), bias.detach().to(dtype).repeat(4)


def _up(cells: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """(..., in) -> (..., 4, out): the four parts of every cell."""
    parts: Tensor = F.linear(cells, *weights)
    return parted(parts, -1, 4, -1)


def _in_cells(maps: Tensor, halvings: int) -> Tensor:
    """(B, c, h * 2**k, w * 2**k) -> (B, N, 4**k, c), parts of a cell in the order in which `_up` makes them."""
    twos = (2,) * halvings
    parts = parted(parted(maps, 3, -1, *twos), 2, -1, *twos)
    halves = [axis for k in range(halvings) for axis in (3 + k, 4 + halvings + k)]
    return parts.permute(0, 2, 3 + halvings, *halves, 1).flatten(3, 2 + 2 * halvings).flatten(1, 2)
