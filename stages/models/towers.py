"""The image towers that CLIP models have here: one feature before the projection, one after, and tokens of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from manifests.errors import WeightsError

CPU_BATCH = 4
"""Images that a convolutional trunk takes at once on a CPU: more fall out of its cache (17 ms an image, 24 ms at 8)."""

TextEncoder = Callable[[Sequence[str]], Tensor]
"""Texts to vectors after CLIP's text projection, (K, projected dim)."""


class TrunkOutput(NamedTuple):
    """What an image tower gives before CLIP's projection."""

    pooled: Tensor
    """One vector an image, (B, D)."""
    tokens: Tensor
    """One vector a patch or grid cell, row by row, (B, h * w, D)."""
    grid: tuple[int, int]
    """h and w."""


class ImageTower(Protocol):
    """A frozen image encoder whose last step is a linear projection without bias."""

    projection: Tensor
    """P^T, (trunk dim, projected dim) float32 whatever the tower's type: projected = trunk @ projection."""

    def __call__(self, pixels: Tensor) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, H, W)."""
        ...


class VitTower(nn.Module):
    """open_clip's VisionTransformer: pooled is ln_post(CLS), tokens are ln_post(patches).

    Parameters
    ----------
    visual : VisionTransformer
        Image tower of an open_clip model; its projection is taken out of it.

    Raises
    ------
    WeightsError
        If the tower is of another kind, or pools by attention so that no token lies in its feature space.
    """

    def __init__(self, visual: Any) -> None:
        from open_clip.transformer import VisionTransformer

        super().__init__()
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
            raise WeightsError(
                f"Image tower {type(visual).__name__}: its features before the projection are not defined here.",
                "Choose a model with open_clip's own vision transformer, such as ViT-B-16-quickgelu.",
            )
        self.projection: Tensor = visual.proj.detach().float().clone()
        visual.proj = None
        visual.output_tokens = True
        self.visual = visual

    def forward(self, pixels: Tensor) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, image_px, image_px)."""
        pooled, tokens = self.visual(pixels)
        if self.visual.final_ln_after_pool:
            tokens = self.visual.ln_post(tokens)
        return TrunkOutput(pooled, tokens, tuple(self.visual.grid_size))


class CnnTower(nn.Module):
    """A convolutional trunk: pooled is the mean over the last feature map, tokens are its cells.

    Parameters
    ----------
    visual : TimmModel
        open_clip's wrapper of a timm network that ends in average pooling and a linear projection without bias.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.trunk = visual.trunk.to(memory_format=torch.channels_last)
        self.projection: Tensor = visual.head.proj.weight.detach().float().T.clone()

    def forward(self, pixels: Tensor) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, image_px, image_px)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        parts = torch.split(pixels, CPU_BATCH if pixels.device.type == "cpu" else len(pixels))
        features = torch.cat([self.trunk.forward_features(part) for part in parts])
        cells = features.flatten(2).transpose(1, 2)
        return TrunkOutput(cells.mean(dim=1), cells, (features.shape[2], features.shape[3]))
