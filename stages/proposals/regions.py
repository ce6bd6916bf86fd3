"""Holes and islands of a mask that are too small to be meant.

SAM2's package does this only where its CUDA extension was compiled, and on the logits; here it is the rule of SAM's own
generator (`postprocess_small_regions`), on the canvas and by scipy, so that every machine gives the same mask.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label

from stages.images import Placement
from stages.proposals.bits import pack, unpack
from stages.proposals.candidates import ScoredMasks, measured

TOUCHING = np.ones((3, 3), dtype=bool)
"""Pixels that touch at a corner belong together."""


def without_small_regions(mask: NDArray[np.bool_], least_px: int) -> NDArray[np.bool_]:
    """Fill the holes of a mask and drop its islands that have fewer pixels; of islands alone the largest stays.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
        Of the image alone, without padding.
    least_px : int
        Regions with as many pixels are left.

    Returns
    -------
    ndarray of bool, (H, W)
    """
    filled = mask | _small(~mask, least_px)
    small = _small(filled, least_px)
    if filled.any() and (small == filled).all():
        islands, _ = label(filled, TOUCHING)
        largest = np.bincount(islands[filled]).argmax()
        return np.asarray(islands == largest)
    return filled & ~small


def cleaned(masks: ScoredMasks, placement: Placement, least_px: int) -> ScoredMasks:
    """Take small holes and islands from scored masks; area, border share and box are measured anew.

    Parameters
    ----------
    masks : ScoredMasks
        On any device.
    placement : Placement
        Where the image lies in its canvas.
    least_px : int
        Regions with as many pixels of the canvas are left; 0 leaves all.
    """
    if not least_px or not len(masks):
        return masks
    canvas, (rows, columns) = unpack(masks.packed).cpu().numpy(), placement.slices
    for mask in canvas:
        mask[rows, columns] = without_small_regions(mask[rows, columns], least_px)
    packed = pack(torch.from_numpy(canvas)).to(masks.packed.device)
    return measured(packed, masks.scores[:, 0], masks.scores[:, 1], placement)


def _small(mask: NDArray[np.bool_], least_px: int) -> NDArray[np.bool_]:
    regions, _ = label(mask, TOUCHING)
    small = np.bincount(regions.ravel()) < least_px
    small[0] = False
    return np.asarray(small[regions])
