"""What the frozen encoder of SAM or SAM2 makes of images at several depths, averaged over a few equal cells.

Source of the depths: SLCA (arXiv 2505.06217), whose text is not at hand; for SAM it names patch embedding, early,
middle and late blocks and the neck. Those of SAM2 are this project's reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.canary import canary_image
from stages.models.clip import resize
from stages.models.sam2 import Segmenter

CANARY_GRID: Final = 4


@torch.inference_mode()
def encode_depths(model: Segmenter, images: Sequence[NDArray[np.uint8]], grid: int) -> list[NDArray[np.float16]]:
    """Features of a segmenter's encoder at five depths, early to late.

    Of SAM2 the four maps of its trunk and the last map of its neck; of SAM the patch embedding, the blocks at a third,
    two thirds and the end of its depth, and the neck.

    Parameters
    ----------
    model : Segmenter
        Loaded.
    images : Sequence[ndarray of uint8, (H, W, 3)]
        RGB, at least one; each is squashed to the model's square.
    grid : int
        Cells along each side, g.

    Returns
    -------
    list[ndarray of float16, (B, C, g, g)]
        Means over equal cells; C as `stages.models.sam2_card.depth_channels` says.
    """
    squares = [resize(torch.tensor(image), model.image_px, "bilinear").permute(1, 2, 0) for image in images]
    pixels = model.normalised(torch.stack(squares))
    maps: list[Tensor] = []
    encoder = model.network.image_encoder
    if hasattr(encoder, "trunk"):
        hooks = [encoder.trunk.register_forward_hook(lambda _module, _inputs, out: maps.extend(out))]
    else:
        blocks = [encoder.layers[len(encoder.layers) * third // 3 - 1] for third in (1, 2, 3)]
        hooks = [
            part.register_forward_hook(lambda _module, _inputs, out: maps.append(_channels_first(out)))
            for part in (encoder.patch_embed, *blocks)
        ]
    found: list[list[NDArray[np.float16]]] = []
    try:
        for some in torch.split(pixels, 1 if pixels.device.type == "cpu" else len(pixels)):
            maps.clear()
            with model.autocast():
                last = model.network.forward_image(some)["backbone_fpn"][-1]
            pooled = [F.adaptive_avg_pool2d(depth.float(), grid) for depth in (*maps, last)]
            found.append([depth.half().cpu().numpy() for depth in pooled])
    finally:
        for hook in hooks:
            hook.remove()
    return [np.concatenate(depth) for depth in zip(*found, strict=True)]


def encode_canary(model: Segmenter) -> NDArray[np.float32]:
    """The canary's features at all depths on a coarse grid, each depth of length 1, joined; (D,)."""
    depths = [depth[0].astype(np.float32).ravel() for depth in encode_depths(model, [canary_image()], CANARY_GRID)]
    return np.concatenate([depth / np.linalg.norm(depth) for depth in depths])


def _channels_first(out: Any) -> Tensor:
    """What a part of SAM's encoder gives, (B, h, w, C) and perhaps more, as (B, C, h, w)."""
    features: Tensor = out[0] if isinstance(out, tuple) else out
    return features.permute(0, 3, 1, 2)
