"""A grid's map on the canvas, and whether it points into a mask: two measures, each beside chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.types import expect_array
from stages.images import Placement, content


class Pointing(NamedTuple):
    """How a map lies to a mask."""

    hit: bool
    """Whether the map's maximum lies in the mask; one in the padding does not, and a map without any never hits."""
    energy: float
    """Share of the map's sum on the whole canvas that lies in the mask, in [0, 1]; NaN where it is zero everywhere."""
    area: float
    """Share of the image that lies in the mask, in (0, 1]: what an even map of the image gets, of either."""


def relative(heat: NDArray[np.floating]) -> NDArray[np.float32]:
    """A map that is not negative as shares of its maximum, in [0, 1]; zero everywhere stays so."""
    most = float(heat.max(initial=0.0))
    return (heat / most).astype(np.float32) if most > 0 else np.zeros(heat.shape, np.float32)


def upsample(heat: NDArray[np.floating], box: Placement, canvas_px: int) -> NDArray[np.float32]:
    """Spread a grid's map over the canvas, bilinearly between the centres of its cells.

    Parameters
    ----------
    heat : ndarray of float, (h, w)
        Not negative.
    box : Placement
        What the grid covers, in canvas pixels; it may stand over the edge of the canvas.
    canvas_px : int
        Side S of the canvas, in pixels.

    Returns
    -------
    ndarray of float32, (S, S)
        In [0, 1], as shares of the grid's maximum; zero outside the box.
    """
    rows = _between(heat.shape[0], box.y0, box.height, canvas_px)
    columns = _between(heat.shape[1], box.x0, box.width, canvas_px)
    spread: NDArray[np.float32] = np.clip(rows @ relative(heat) @ columns.T, 0, 1)
    return spread


def _between(cells: int, start: int, length: int, canvas_px: int) -> NDArray[np.float32]:
    """Share of each cell in each pixel of one axis, (canvas_px, cells); rows sum to one inside the box."""
    pixels = np.arange(max(start, 0), min(start + length, canvas_px))
    place = np.clip((pixels - start + 0.5) * cells / length - 0.5, 0, cells - 1)
    before = np.floor(place).astype(np.int64)
    after = np.minimum(before + 1, cells - 1)
    shares = np.zeros((canvas_px, cells), np.float32)
    np.add.at(shares, (pixels, before), 1 - (place - before))
    np.add.at(shares, (pixels, after), place - before)
    return shares


def pointing(heat: NDArray[np.floating], box: Placement, mask: NDArray[np.bool_], placement: Placement) -> Pointing:
    """Compare a map with a mask; the padding of the canvas lies outside it, so that looking there is no merit.

    `hit` is the pointing game (Zhang et al., Top-down neural attention by excitation backprop, IJCV 2018, section 4.2),
    without its tolerance of 15 pixels; of equal maxima the one nearest to their middle counts. `energy` is the
    energy-based pointing game (Wang et al., Score-CAM, CVPR workshops 2020, section 4.3).

    Parameters
    ----------
    heat : ndarray of float, (h, w)
        Not negative.
    box : Placement
        What the grid covers, in canvas pixels.
    mask : ndarray of bool, (S, S)
        On the canvas.
    placement : Placement
        Where the image lies in the canvas.

    Raises
    ------
    ValueError
        If the mask is no square of bool, or empty in the image.
    """
    side = len(mask)
    expect_array("mask", mask, (side, side), "bool")
    shown = upsample(heat, box, side).astype(np.float64)
    inside = mask & content(placement, side)
    if not inside.any():
        raise ValueError("mask: expected at least one pixel in the image, got none")
    area = float(inside.sum() / (placement.height * placement.width))
    if not shown.any():
        return Pointing(hit=False, energy=float("nan"), area=area)
    highest = np.argwhere(shown >= shown.max() * (1 - 1e-6))
    middle = highest[((highest - highest.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return Pointing(bool(inside[tuple(middle)]), float(shown[inside].sum() / shown.sum()), area)
