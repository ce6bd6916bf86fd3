"""Form of a mask in a few numbers, without any pixel of the image: what a classifier can read off the mask alone."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.images import Placement, outline

SHAPE: Final = (
    "area",
    "centroid_y",
    "centroid_x",
    "height",
    "width",
    "spread_y",
    "spread_x",
    "tilt",
    "solidity",
    "edge",
    "parts",
)
"""Names of the numbers of `mask_shape`, in order."""
MOST_PARTS: Final = 10
STRIDE: Final = 4
"""Of the pixels on which parts are counted."""


def mask_shape(mask: NDArray[np.bool_], placement: Placement) -> NDArray[np.float32]:
    """Describe a mask.

    Parameters
    ----------
    mask : ndarray of bool, (S, S)
        Mask on the canvas.
    placement : Placement
        Where the image lies in the canvas.

    Returns
    -------
    ndarray of float32, (len(SHAPE),)
        In image sides: share of the area; centroid; sides of the box; standard deviations of rows and columns; their
        covariance over the product of the deviations, in [-1, 1]; share of the convex hull; pixels of the edge over
        half the image's circumference; regions on every fourth pixel (connected at corners) over ten, at most 1. All
        zero for an empty mask.
    """
    from scipy.ndimage import label

    inside = mask[placement.slices]
    if not inside.any():
        return np.zeros(len(SHAPE), np.float32)
    sides = np.array(inside.shape)
    along = [inside.sum(axis=axis) for axis in (1, 0)]
    places = [np.arange(side) + 0.5 for side in inside.shape]
    centroid, spread = (np.array(x) for x in zip(*map(_mean_and_spread, places, along), strict=True))
    box = np.array([np.ptp(np.flatnonzero(counts)) + 1 for counts in along])
    together = (places[0] - centroid[0]) @ (inside.astype(np.float64) @ (places[1] - centroid[1])) / along[0].sum()
    tilt = together / spread.prod() if spread.all() else 0.0
    edge = outline(inside, 1).sum() / sides.sum()
    parts = min(int(label(inside[::STRIDE, ::STRIDE], np.ones((3, 3)))[1]), MOST_PARTS) / MOST_PARTS
    form = (tilt, _solidity(inside), edge, parts)
    return np.array([inside.mean(), *(centroid / sides), *(box / sides), *(spread / sides), *form], np.float32)


def _mean_and_spread(places: NDArray[np.floating], counts: NDArray[np.integer]) -> tuple[float, float]:
    mean = float(np.average(places, weights=counts))
    return mean, float(np.sqrt(np.average((places - mean) ** 2, weights=counts)))


def _solidity(inside: NDArray[np.bool_]) -> float:
    """Share of its convex hull that a mask fills; the first and the last pixel of each row span the hull."""
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(inside.any(axis=1))
    left, right = inside[rows].argmax(axis=1), inside.shape[1] - inside[rows, ::-1].argmax(axis=1)
    corners = [np.column_stack((rows + down, columns)) for columns in (left, right) for down in (0, 1)]
    return float(inside.sum() / ConvexHull(np.concatenate(corners)).volume)
