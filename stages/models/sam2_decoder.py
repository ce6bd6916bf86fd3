"""SAM2's mask decoder for many prompts on few images: the package's numbers, rearranged so that less is computed.

Nothing is approximated; for attention see `sam2_attention`. What the first layer makes of the image alone is computed
once for an image. The IoU head reads one token, so that the last attention is computed for this token first, and for
the tokens of those masks that someone wants afterwards; only these are upscaled. Transposed convolutions of kernel and
stride 2 are products of cells, which keep their order until the mask is whole. Architecture: SAM2 (arXiv 2408.00714),
`sam2/modeling/sam` of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.models.sam2_attention import Cells, Layer, LayerNorm, Projection, WrittenCells, parted

if TYPE_CHECKING:
    from sam2.modeling.sam.mask_decoder import MaskDecoder

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
    """(B, N, 4, C / 4), features at twice the resolution, the four parts of each cell together; (B, 1, 1, 1) of zeros
    where the model has none."""
    fine: Tensor
    """(B, N, 16, C / 8), features at four times the resolution, in the same manner."""


class Answer(NamedTuple):
    """What the transformer makes of P prompts on each of B images."""

    cells: Cells
    """Of B * P prompts, image by image."""
    queries: Tensor
    """(B, P, 4, C), the masks' tokens before the last attention."""
    tokens: Tensor
    """(4, C), the same as they went into the transformer."""
    predicted_iou: Tensor
    """(B, P, 4) float32."""


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
        on_tensor_cores = dense_pe.device.type == "cuda" and dtype == torch.bfloat16
        self.fused = on_tensor_cores and find_spec("triton") is not None
        """Cells are made where they are read, see `sam2_fused`; on a CPU this takes Triton's interpreter."""
        self._dtype = dtype
        self._shape = dense_pe.shape[-2:]
        self._positions = dense_pe.flatten(2).transpose(1, 2).to(dtype)
        self._no_mask = no_mask.detach().to(dtype)
        transformer = decoder.transformer
        self._first, self._second = (Layer(layer, dtype) for layer in transformer.layers)
        self._final = Projection.of(transformer.final_attn_token_to_image, dtype)
        self._final_norm = LayerNorm.of(transformer.norm_final_attn, dtype)
        first, norm, _, second, _ = decoder.output_upscaling
        self._up = [_cell_weights(convolution, dtype) for convolution in (first, second)]
        self._up_norm = (norm.weight.detach().to(dtype), norm.bias.detach().to(dtype))

    def maps(self, embedding: Tensor, finer: Sequence[Tensor]) -> ImageMaps:
        """Prepare B images.

        Parameters
        ----------
        embedding : Tensor, (B, C, h, w)
            From the image encoder.
        finer : Sequence[Tensor]
            High-resolution features, (B, C / 8, 4 h, 4 w) and (B, C / 4, 2 h, 2 w); empty if the model has none.
        """
        source = embedding.flatten(2).transpose(1, 2).to(self._dtype) + self._no_mask
        placed = source + self._positions
        to_image, to_tokens = self._first.to_image, self._first.to_tokens
        none = source.new_zeros((len(source), 1, 1, 1))
        fine, middle = (_in_cells(m.to(self._dtype), 2 - i) for i, m in enumerate(finer)) if finer else (none, none)
        return ImageMaps(
            source,
            to_image.split(placed, to_image.key),
            to_image.split(source, to_image.value),
            to_tokens.split(placed, to_tokens.query),
            middle,
            fine,
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
        at = len(own) - 2
        read = self._read(cells, queries[:, at : at + 1], fixed[at : at + 1])
        iou = decoder.iou_prediction_head(read[:, 0].float()).float()
        masks = slice(at + 1, at + 1 + MASKS)
        queries, iou = (parted(x, 0, n_images, n_prompts) for x in (queries[:, masks], iou))
        return Answer(cells, queries, fixed[masks], iou)

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
        some = wanted.flatten(0, 1).any(dim=0).nonzero()[:, 0]
        networks = [self._decoder.output_hypernetworks_mlps[i] for i in some.tolist()]
        height, width = self._shape
        if not networks:
            return answer.predicted_iou.new_zeros((0, 4 * height, 4 * width))
        cells = answer.cells.take(image * wanted.shape[1] + prompt)
        tokens = self._read(cells, answer.queries[image, prompt][:, some], answer.tokens[some]).float()
        heads = torch.stack([network(tokens[:, i]) for i, network in enumerate(networks)], dim=1).to(self._dtype)
        up = _add_maps(_up(cells.written(), self._up[0]), maps.middle, image)
        up = F.gelu(F.layer_norm(up, up.shape[-1:], *self._up_norm, eps=LAYER_NORM_2D_EPS))
        up = F.gelu(_add_maps(_up(up, self._up[1]).flatten(2, 3), maps.fine, image))
        products = torch.bmm(heads, up.flatten(1, 2).transpose(1, 2))[wanted[image, prompt][:, some]]
        # (M, h, w, y of 2, x of 2, y of 4, x of 4): rows are cell, half, quarter.
        parts = products.float().view(-1, height, width, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return parts.reshape(-1, 4 * height, 4 * width)

    def _read(self, cells: Cells, queries: Tensor, tokens: Tensor) -> Tensor:
        """Let some tokens attend to the cells for the last time, (Q, n, C)."""
        seen = cells.read(self._final.key_rows(queries + tokens))
        return self._final_norm(queries + self._final.from_image(seen))

    def _first_layer(self, maps: ImageMaps, tokens: Tensor, n_prompts: int) -> tuple[Tensor, Cells]:
        layer = self._first
        queries = layer.norms[0](layer.among_tokens.plain(tokens, tokens, tokens))
        asked = layer.to_image.split(queries + tokens, layer.to_image.query)
        # All prompts of an image attend to the same cells: their tokens form one long sequence.
        together = _per_image(asked, n_prompts).transpose(1, 2).flatten(2, 3)
        found = F.scaled_dot_product_attention(together, maps.keys, maps.values)
        found = parted(found, 2, n_prompts, -1).transpose(1, 2).flatten(0, 1)
        queries = layer.tokens_after_image(queries, layer.to_image.joined(found))
        attention, norm = layer.to_tokens, layer.norms[3]
        if self.fused:
            from stages.models.sam2_fused import FusedCells

            image = torch.arange(len(maps.source), device=queries.device).repeat_interleave(n_prompts)
            change = attention.change(queries + tokens, queries, norm)
            return queries, FusedCells(maps.source, self._positions, image, (change,))
        keys = _per_image(attention.split(queries + tokens, attention.key), n_prompts).transpose(1, 2)
        scores = (keys.flatten(2, 3) * attention.scale) @ maps.queries.transpose(-2, -1)
        weights = parted(scores, 2, n_prompts, -1).softmax(dim=3).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        source = maps.source.repeat_interleave(n_prompts, dim=0)
        cells = torch.baddbmm(source, weights.transpose(1, 2), attention.value_rows(queries))
        return queries, WrittenCells(norm(cells), self._positions)

    def _second_layer(self, queries: Tensor, cells: Cells, tokens: Tensor) -> tuple[Tensor, Cells]:
        layer = self._second
        placed = queries + tokens
        queries = layer.norms[0](queries + layer.among_tokens.plain(placed, placed, queries))
        seen = cells.read(layer.to_image.key_rows(queries + tokens))
        queries = layer.tokens_after_image(queries, layer.to_image.from_image(seen))
        return queries, cells.changed(layer.to_tokens.change(queries + tokens, queries, layer.norms[3]))


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


def _add_maps(x: Tensor, maps: Tensor, image: Tensor) -> Tensor:
    """Add to each row the map of its image, in place."""
    return x.add_(maps if len(maps) == 1 else maps[image])


def _in_cells(maps: Tensor, halvings: int) -> Tensor:
    """(B, c, h * 2**k, w * 2**k) -> (B, N, 4**k, c), parts of a cell in the order in which `_up` makes them."""
    twos = (2,) * halvings
    parts = parted(parted(maps, 3, -1, *twos), 2, -1, *twos)
    halves = [axis for k in range(halvings) for axis in (3 + k, 4 + halvings + k)]
    return parts.permute(0, 2, 3 + halvings, *halves, 1).flatten(3, 2 + 2 * halvings).flatten(1, 2)
