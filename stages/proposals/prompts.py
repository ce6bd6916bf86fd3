"""Where SAM2 is prompted: a grid of points over the image, and two fixed prompts; never on the padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.images import Placement


def point_grid(placement: Placement, points_per_side: int) -> NDArray[np.float32]:
    """Points in the middle of equal cells of the image, row by row, as SAM2's automatic mask generator places them.

    Parameters
    ----------
    placement : Placement
        Where the image lies in its canvas.
    points_per_side : int
        Cells along each side.

    Returns
    -------
    ndarray of float32, (points_per_side**2, 1, 2)
        x, y in pixels of the canvas.
    """
    middles = (np.arange(points_per_side) + 0.5) / points_per_side
    y, x = np.meshgrid(middles * placement.height, middles * placement.width, indexing="ij")
    points = np.stack((placement.x0 + x.ravel(), placement.y0 + y.ravel()), axis=1)
    return points[:, None].astype(np.float32)


def centre_point(placement: Placement) -> NDArray[np.float32]:
    """The middle of the image, (1, 1, 2) float32, x, y in pixels of the canvas."""
    return point_grid(placement, 1)


def content_box(placement: Placement) -> NDArray[np.float32]:
    """Upper left and lower right corner of the whole image, (1, 2, 2) float32, x, y in pixels of the canvas."""
    y0, x0, height, width = placement
    return np.array([[[x0, y0], [x0 + width, y0 + height]]], dtype=np.float32)
