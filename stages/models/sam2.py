"""SAM and SAM2 for many images and prompts: images are encoded in batches, prompts of all of them decoded in one call.

The numbers are those of the package's SAM2ImagePredictor. Neither hole filling nor sprinkle removal is done, because
the package does them only where its CUDA extension `_C` was compiled, and otherwise skips them with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from manifests.errors import WeightsError
from stages.models.checkpoints import load_strictly, read_state
from stages.models.registry import ModelEntry
from stages.models.room import in_parts_that_fit, keep_float32, most_that_fit
from stages.models.sam2_architecture import instantiate_seeded, read_config, tiny_config
from stages.models.sam2_attention import parted
from stages.models.sam2_card import (
    CORNERS,
    DECODER_BYTES,
    ENCODER_BYTES_PER_PIXEL,
    INSIDE,
    NOTHING,
    OUTSIDE,
    sam2_entry,
    segmenter_card,
)
from stages.models.sam2_decoder import ImageMaps, SharedDecoder
from stages.models.weights import WeightsFolder

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

    from stages.models.sam1 import Sam

MOST_PROMPTS: Final = 256
"""Prompts that one call of the decoder may hold, however much memory there is."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What the encoder made of a batch of B images; on the model's device."""

    maps: ImageMaps
    canvas_px: int
    """Side of the images as they came in, in pixels: the unit of prompts."""

    def of(self, index: int) -> ImageFeatures:
        """One image of the batch."""
        return ImageFeatures(ImageMaps(*(m[index : index + 1] for m in self.maps)), self.canvas_px)


class Decoded(NamedTuple):
    """Masks of P prompts on each of B images, of which M were wanted; on the model's device."""

    logits: Tensor
    """(M, image_px / 4, image_px / 4) float32, by image, prompt and mask; a mask is where they lie above 0."""
    predicted_iou: Tensor
    """(B, P, 4) float32, the model's own estimate of each mask's IoU: the single one's, then those of the three."""
    wanted: Tensor
    """(B, P, 4) bool."""


def all_three(predicted_iou: Tensor) -> Tensor:
    """Want the multimask output, what a prompt that may mean several objects is answered with."""
    return torch.ones_like(predicted_iou, dtype=torch.bool).index_fill(-1, _single(predicted_iou), value=False)


def best_of_three(predicted_iou: Tensor) -> Tensor:
    """Want the mask of the multimask output with the highest predicted IoU."""
    return F.one_hot(predicted_iou[..., 1:].argmax(dim=-1) + 1, predicted_iou.shape[-1]).bool()


def single_mask(predicted_iou: Tensor) -> Tensor:
    """Want the single mask, what a prompt that means one object, such as a box, is answered with."""
    return ~all_three(predicted_iou)


def _single(predicted_iou: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=predicted_iou.device)


class Segmenter:
    """A loaded SAM or SAM2: encode images once, then decode any number of prompts.

    Parameters
    ----------
    known : ModelEntry
        What the registry says of the model.
    network : SAM2Base or Sam
        With its weights; is moved to the device.
    card : Mapping[str, Any]
        JSON values that say what masks depend on.
    device : str
        Torch device, such as `cpu` or `cuda:0`.
    compiled : bool
        The image encoder goes through torch.compile, which takes minutes at its first call and needs a C++ compiler.
    """

    def __init__(
        self,
        known: ModelEntry,
        network: SAM2Base | Sam,
        card: Mapping[str, Any],
        device: str,
        *,
        compiled: bool = False,
    ) -> None:
        self.name = known.name
        self.image_px = known.image_px
        self.card = dict(card)
        self.device = torch.device(device)
        self.network: Any = network.to(self.device)
        self._encode = torch.compile(self.network.forward_image) if compiled else self.network.forward_image
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(card["mean"], device=self.device).view(shape)
        self._std = torch.tensor(card["std"], device=self.device).view(shape)
        self._boxes_are_padded = getattr(network, "boxes_are_padded", True)
        prompt, decoder = self.network.sam_prompt_encoder, self.network.sam_mask_decoder
        dtype = torch.float32 if card["precision"] == "float32" else torch.bfloat16
        self._decoder = SharedDecoder(decoder, prompt.get_dense_pe(), prompt.no_mask_embed.weight, dtype)

    @property
    def prompts_per_call(self) -> int:
        """Prompts that the decoder takes at once, within `DECODER_BYTES` and free memory; does not change results."""
        channels, cells = self._decoder.channels, (self.image_px // 16) ** 2
        # Some six copies of the embedding in the transformer; then C/4 at 4 and C/8 at 16 times the cells, twice.
        bytes_each = 4 * cells * channels * (6 + 2 + 4)
        room = DECODER_BYTES.get(self.device.type, DECODER_BYTES["cpu"])
        return int(max(1, min(MOST_PROMPTS, room // bytes_each, most_that_fit(bytes_each, self.device))))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode images; squares of another size than the model's are resized on its device.

        Parameters
        ----------
        images : Tensor of uint8, (B, S, S, 3)
            RGB canvases.

        Raises
        ------
        ValueError
            If the images are not squares of uint8.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (images.shape[1], images.shape[1], 3):
            raise ValueError(f"images: expected (B, S, S, 3) uint8, got {tuple(images.shape)} {images.dtype}")
        pixels = self.normalised(images)
        # On a CPU several images together only leave the cache: one by one takes half the time.
        batches = torch.split(pixels, 1 if self.device.type == "cpu" else len(pixels))
        each = self.image_px**2 * ENCODER_BYTES_PER_PIXEL
        with self.autocast():
            encoded = [
                part["backbone_fpn"] for batch in batches for part in in_parts_that_fit(self._encode, batch, each)
            ]
        *finer, embedding = encoded[0] if len(encoded) == 1 else map(torch.cat, zip(*encoded, strict=True))
        if self.network.directly_add_no_mem_embed:
            embedding = embedding + self.network.no_mem_embed.view(1, -1, 1, 1)
        return ImageFeatures(self._decoder.maps(embedding, finer), images.shape[1])

    @torch.inference_mode()
    def decode(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        wanted: Callable[[Tensor], Tensor] = all_three,
    ) -> Decoded:
        """Masks of P prompts on each of B images.

        Parameters
        ----------
        features : ImageFeatures
            What `encode` returned.
        points : Tensor of float, (B, P, n, 2)
            x, y in pixels of the canvas.
        labels : Tensor of int, (B, P, n)
            1 inside, 0 outside the object; 2 and 3 for the two corners of a box.
        wanted : Callable[[Tensor], Tensor]
            From predicted IoU, (B, P, 4), to the masks that are worth computing, (B, P, 4) bool; such as `all_three`.

        Raises
        ------
        ValueError
            If shapes do not fit, there is no prompt, a label is unknown, the corners of a box are swapped, or a point
            lies outside the canvas: SAM2 itself would take it.
        """
        n_images = len(features.maps.source)
        if points.ndim != 4 or points.shape[3] != 2 or labels.shape != points.shape[:3] or len(points) != n_images:
            raise ValueError(
                f"points: expected ({n_images}, P, n, 2) with labels of the same, got {points.shape}, {labels.shape}"
            )
        known = labels.new_tensor((NOTHING, OUTSIDE, INSIDE, *CORNERS))
        if not points.shape[1] or not bool(torch.isin(labels, known).all()):
            raise ValueError(
                f"labels: expected at least one, of {known.tolist()}, got {sorted(set(labels.flatten().tolist()))}"
            )
        upper, lower = (points[labels == corner] for corner in CORNERS)
        if len(upper) != len(lower) or not bool((upper <= lower).all()):
            raise ValueError("points: expected the upper left corner of a box, labelled 2, then its lower right one, 3")
        if not bool(((points >= 0) & (points <= features.canvas_px)).all()):
            raise ValueError(f"points: expected x and y in 0..{features.canvas_px}, got {points.min()}..{points.max()}")
        scaled = points.to(self.device, torch.float32) / features.canvas_px * self.image_px
        prompts = self._embed(scaled.flatten(0, 1), labels.to(self.device).flatten(0, 1))
        answer = self._decoder.answer(features.maps, parted(prompts, 0, *labels.shape[:2]))
        chosen = wanted(answer.predicted_iou)
        return Decoded(self._decoder.upscale(features.maps, answer, chosen), answer.predicted_iou, chosen)

    def normalised(self, images: Tensor) -> Tensor:
        """Squares of uint8, (B, S, S, 3), as the network's pixels, (B, 3, image_px, image_px), on its device."""
        pixels = images.to(self.device).permute(0, 3, 1, 2).float().div(255)
        if images.shape[1] != self.image_px:
            pixels = F.interpolate(pixels, (self.image_px, self.image_px), mode="bilinear", antialias=True)
        normalised: Tensor = (pixels - self._mean) / self._std
        return normalised

    def _embed(self, points: Tensor, labels: Tensor) -> Tensor:
        """Points, (Q, n, 2), and their labels as tokens, (Q, n or n + 1, C)."""
        encoder: Callable[..., tuple[Tensor, Tensor]] = self.network.sam_prompt_encoder
        if not self._boxes_are_padded and bool((labels == labels.new_tensor(CORNERS)).all()):
            return encoder(points=None, boxes=points.flatten(1), masks=None)[0]
        return encoder(points=(points, labels), boxes=None, masks=None)[0]

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the card's precision."""
        if self.card["precision"] == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def load_segmenter(name: str, device: str, precision: str = "float32", *, compiled: bool = False) -> Segmenter:
    """Load a SAM or SAM2 model by its name in the registry, from local files alone.

    Parameters
    ----------
    name : str
        Such as `sam2-lite0` or `sam2.1_hiera_tiny`.
    device : str
        Torch device, such as `cpu` or `cuda:0`.
    precision : str
        `float32`, or `bfloat16` for autocast.
    compiled : bool
        See `Segmenter`.

    Raises
    ------
    WeightsError
        If the model is unknown or of another kind, or its weights are missing, altered or of another architecture.
    """
    keep_float32()
    known = sam2_entry(name)
    if known.source == "random":
        log.warning("%s is untrained: its masks are random and mean nothing. Use it in tests only.", name)
    path = None if known.source == "random" else WeightsFolder().verified_path(name)
    return Segmenter(known, assemble(known, path), segmenter_card(name, precision), device, compiled=compiled)


def assemble(known: ModelEntry, path: Path | None, *, streamlined: bool = True) -> SAM2Base | Sam:
    """Build a model's network and load a file into it, strictly.

    Parameters
    ----------
    known : ModelEntry
        What the registry says of it; an adapted model brings the files of the one that it adapts.
    path : Path or None
        Its own file; None for random weights.
    streamlined : bool
        Rearranged for speed where that is known how; then no gradient passes through the trunk.

    Raises
    ------
    WeightsError
        If the file cannot be read or is of another architecture.
    """
    if known.source == "random":
        return instantiate_seeded(tiny_config(known.architecture, known.image_px))
    if path is None:
        raise WeightsError(f"{known.name} needs a weights file.", "See: pipeline weights list")
    state, what = read_state(path), f"{path.name} and {known.name}"
    if known.adapter:
        from stages.models.adapters import load_adapter

        base = sam2_entry(known.base)
        of_base = None if base.source == "random" else WeightsFolder().verified_path(base.name)
        adapted: Any = assemble(base, of_base, streamlined=False)
        load_adapter(adapted, known.adapter, state, what)
        return adapted
    if known.source == "shipped":
        from stages.models import sam2_lite0

        network = instantiate_seeded(sam2_lite0.lite0_config(known.architecture, known.image_px))
        sam2_lite0.load_lite0_parts(network, state, what, streamlined=streamlined)
    elif known.kind == "sam":
        from stages.models.sam1 import build_sam

        network = build_sam(known.architecture, known.image_px, state, what)
    else:
        network = instantiate_seeded(read_config(known.architecture, known.image_px))
        load_strictly(network, state, what)
    return network
