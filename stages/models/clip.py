"""CLIP models behind one interface: image vectors and tokens, and text vectors in the same space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.models.card import ACTIVATION_BYTES, model_card
from stages.models.registry import Features, entry
from stages.models.rollout import attention_layers, rolled_out
from stages.models.room import in_parts_that_fit, keep_float32
from stages.models.towers import Bias, ImageTower, TextEncoder, TrunkOutput

TEXT_BATCH = 64


@dataclass(frozen=True, slots=True)
class ImageEncoding:
    """What a batch of B images became; on the CPU."""

    vectors: Tensor
    """(B, D) float32, L2-normalised; NaN or zero where the model gave no direction."""
    tokens: Tensor | None
    """(B, h * w, D) float32, not normalised, so that their mean pools as the model itself pools; None if not asked."""
    grid: tuple[int, int]
    """h and w of the tokens."""
    rollout: Tensor | None = None
    """Attention rollout, (B, h * w) float32, not negative, sums to at most 1 an image; None if not asked."""


class ClipModel:
    """A loaded model: `trunk` is the feature before CLIP's image projection P, `projected` the one after.

    Parameters
    ----------
    card : Mapping[str, Any]
        Identity card, see `stages.models.card.model_card`.
    image : ImageTower
        On its device and in its precision.
    load_text : Callable[[], TextEncoder]
        Called at the first text, so that image-only processes never load the text tower.
    device : str
        Where the image tower lives.
    compiled : bool
        It goes through torch.compile, which takes half a minute at its first call and needs a C++ compiler.
    """

    def __init__(
        self,
        card: Mapping[str, Any],
        image: ImageTower,
        load_text: Callable[[], TextEncoder],
        device: str,
        *,
        compiled: bool = False,
    ) -> None:
        self.name: str = card["name"]
        self.card = card
        self._tower = image
        self._image = torch.compile(image) if compiled else image
        self._load_text = load_text
        self._text: TextEncoder | None = None
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, card["dtype"])
        self._projection = image.projection.to(self._device)
        bias = getattr(image, "projection_bias", None)
        self._projection_bias: Tensor | None = None if bias is None else bias.to(self._device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(card["mean"], device=self._device).mul(255).view(shape)
        self._std = torch.tensor(card["std"], device=self._device).mul(255).view(shape)

    @torch.inference_mode()
    def encode_image(
        self,
        images: Tensor | Sequence[NDArray[np.uint8]],
        features: Features,
        *,
        tokens: bool,
        bias: Bias | None = None,
        rollout: bool = False,
    ) -> ImageEncoding:
        """Encode images; each is squashed to the model's square, so crop or pad them before.

        Parameters
        ----------
        images : Tensor of uint8, (B, H, W, 3), or sequence of ndarray of uint8, (H, W, 3)
            RGB; sizes may differ in a sequence.
        features : Features
            `trunk` or `projected`.
        tokens : bool
            Also return the patch tokens (ViT, after ln_post) or grid cells (CNN).
        bias : Bias, optional
            Added to the attention in the last blocks of a vision transformer.
        rollout : bool
            Also return the attention rollout of a model that `has_rollout`; the vectors stay the same to the last bit.

        Returns
        -------
        ImageEncoding
            Vectors of `card["dims"][features]` entries.

        Raises
        ------
        ValueError
            If an image has another shape or type, the message names both; or if there is no attention to roll out.
        """
        planes = [i if isinstance(i, Tensor) else torch.tensor(np.ascontiguousarray(i)) for i in images]
        for plane in planes:
            if plane.dtype != torch.uint8 or plane.ndim != 3 or plane.shape[2] != 3:
                raise ValueError(f"images: expected (H, W, 3) uint8, got {tuple(plane.shape)} {plane.dtype}")
        squares = [resize(i, self.card["image_px"], self.card["interpolation"]) for i in planes]
        pixels = torch.stack(squares).to(self._device).float().sub_(self._mean).div_(self._std)
        out = self._forward(pixels.to(self._dtype), bias, rollout=rollout)
        vectors = F.normalize(self._in_space(out.pooled, features), dim=-1).cpu()
        kept = self._in_space(out.tokens, features).cpu() if tokens else None
        return ImageEncoding(vectors, kept, out.grid, None if out.rollout is None else out.rollout.cpu())

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], features: Features) -> Tensor:
        """Encode texts into the space of the image features.

        In trunk space a text vector t is lifted through the image projection P: an image's trunk feature x has
        <P x, t> = <x, P^T t>, so the bank is normalise(T P) with one t a row of T. Where the rows of P are orthonormal
        (lite0-minilm) all lifted vectors keep their length, and the ranking of texts for an image is unchanged.

        Returns
        -------
        Tensor of float32, (K, D), on the CPU
            L2-normalised.
        """
        batches = [self.text_tower(texts[i : i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)]
        return self.text_features(torch.cat(batches).float().cpu(), features)

    @property
    def text_tower(self) -> TextEncoder:
        """The text tower, loaded at its first use."""
        self._text = self._text or self._load_text()
        return self._text

    def text_features(self, vectors: Tensor, features: Features) -> Tensor:
        """Bring what the text tower gives, (K, projected dim), into the space of the image features; unit vectors."""
        unit = F.normalize(vectors, dim=-1)
        return F.normalize(unit @ self._projection.to(unit.device).T, dim=-1) if features == "trunk" else unit

    @property
    def image_tower(self) -> ImageTower:
        """The image tower as it was loaded, for training."""
        return self._tower

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..255, (B, 3, H, W), as the image tower sees them, float32 on its device."""
        return (pixels.to(self._device).float() - self._mean) / self._std

    def project(self, trunk: Tensor) -> Tensor:
        """Bring what the image tower pools, (B, trunk dim), into the space of the texts, (B, projected dim)."""
        return self._in_space(trunk, "projected")

    def _in_space(self, trunk: Tensor, features: Features) -> Tensor:
        if features == "trunk":
            return trunk.float()
        projected: Tensor = trunk.float() @ self._projection
        return projected if self._projection_bias is None else projected + self._projection_bias

    @property
    def has_rollout(self) -> bool:
        """Whether the image tower is a vision transformer whose attention can be rolled out."""
        return attention_layers(self._tower) is not None

    def _forward(self, pixels: Tensor, bias: Bias | None, *, rollout: bool) -> TrunkOutput:
        """Run the tower, on parts of a batch that does not fit the device's memory."""
        values = None if bias is None else bias.values.to(self._device)

        def run(rows: Tensor) -> TrunkOutput:
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            own = None if bias is None or values is None else bias._replace(values=values[part])
            return self._rolled_out(pixels[part], own) if rollout else TrunkOutput(*self._image(pixels[part], own))

        rows = torch.arange(len(pixels), device=self._device)
        parts: list[TrunkOutput] = in_parts_that_fit(run, rows, ACTIVATION_BYTES)
        shares = [p.rollout for p in parts if p.rollout is not None]
        joined = (torch.cat([p.pooled for p in parts]), torch.cat([p.tokens for p in parts]))
        return TrunkOutput(*joined, parts[0].grid, torch.cat(shares) if shares else None)

    def _rolled_out(self, pixels: Tensor, bias: Bias | None) -> TrunkOutput:
        layers = attention_layers(self._tower)
        if layers is None:
            raise ValueError(f"rollout: {self.name} has no attention that can be rolled out")
        with rolled_out(layers) as found:
            out = self._tower(pixels, bias)
        return out._replace(rollout=found.of_patches(layers))


def load_clip(name: str, device: str, precision: str, *, compiled: bool = False) -> ClipModel:
    """Load a model by its name in the registry, from local files alone.

    Parameters
    ----------
    name : str
        Such as `lite0-minilm`, `clip-vit-b-32` or `open_clip:ViT-B-16`.
    device : str
        Torch device, such as `cpu` or `cuda:0`.
    precision : str
        `float32` or `bfloat16`: type of the image tower's weights. Texts are always encoded in float32.
    compiled : bool
        See `ClipModel`.

    Raises
    ------
    WeightsError
        If weights are missing, altered or of another architecture.
    """
    keep_float32()
    card = model_card(name, precision)
    image, load_text = _loader(name)(name, device)
    image = image.to(device=device, dtype=getattr(torch, precision)).eval().requires_grad_(requires_grad=False)
    return ClipModel(card, image, load_text, device, compiled=compiled)


def _loader(name: str) -> Callable[[str, str], Any]:
    """What loads the towers of a model; only its own library is imported, some of which take seconds."""
    module = {"timm": "timm_files", "medical": "medical"}.get(entry(name).kind, "open_clip_files")
    module = "lite0_minilm" if name == "lite0-minilm" else module
    load: Callable[[str, str], Any] = import_module(f"stages.models.{module}").load_towers
    return load


def resize(image: Tensor, side_px: int, interpolation: str = "bicubic") -> Tensor:
    """Squash one image to a square with antialiasing, as Pillow and so CLIP's own preprocessing do.

    Always on the CPU with torch's integer kernel: the same pixels whatever device the model is on, five times as fast
    as the float kernel, and 224 x 224 instead of the canvas to copy.

    Parameters
    ----------
    image : Tensor of uint8, (H, W, 3)
        RGB.
    side_px : int
        Side of the square, in pixels.
    interpolation : str
        `bicubic` or `bilinear`.

    Returns
    -------
    Tensor of uint8, (3, side_px, side_px)
    """
    planes = image.cpu().permute(2, 0, 1)[None]
    if planes.shape[2:] == (side_px, side_px):
        return planes[0]
    return F.interpolate(planes, (side_px, side_px), mode=interpolation, antialias=True)[0]
