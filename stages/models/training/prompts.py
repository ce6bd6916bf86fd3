"""Simulated prompts: clicks anywhere inside an object, its box with jitter, clicks beside all objects, corrections.

Prompts follow the training of SAM and SAM2 (arXiv 2304.02643, appendix A; arXiv 2408.00714, section D.2.2), except that
a share of the boxes is exact, and that clicks beside every object are shown too, whose masks are worth nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from stages.models.sam2_card import INSIDE, OUTSIDE

JITTER: Final = 0.1
"""Largest standard deviation of a box's sides, as a share of width and height."""
MOST_JITTER_PX: Final = 20.0
CLEARANCE: Final = 0.015
"""Distance of a click beside all objects from the nearest of them, as a share of the canvas."""


def click_inside(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a point inside a mask: as often near its middle as near its edge.

    Parameters
    ----------
    mask : ndarray of bool, (H, W)
        With at least one pixel.
    rng : numpy.random.Generator
        Drawn from twice.

    Returns
    -------
    ndarray of float32, (2,)
        x, y of a pixel's middle, in pixels of the mask.
    """
    (x0, y0), (x1, y1) = box_of(mask).astype(int)
    depth = distance_transform_edt(np.pad(mask[y0:y1, x0:x1], 1))[1:-1, 1:-1]
    y, x = np.nonzero(depth >= rng.uniform(0, 0.95) * depth.max() + 1e-6)
    return _point(y + y0, x + x0, rng)


def click_beside(masks: NDArray[np.bool_], content: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a point of the image that lies in no mask and not close to one, (2,) float32, x, y.

    Parameters
    ----------
    masks : ndarray of bool, (n, H, W)
        All objects of the image; n may be 0.
    content : ndarray of bool, (H, W)
        Where the image lies in its canvas.
    rng : numpy.random.Generator
        Drawn from once.

    Returns
    -------
    ndarray of float32, (2,)
        x, y; both -1 if there is no such pixel.
    """
    free = np.ones(content.shape, dtype=bool)
    if len(masks):
        free = distance_transform_edt(~masks.any(axis=0)) > CLEARANCE * content.shape[-1]
    y, x = np.nonzero(free & content)
    return _point(y, x, rng) if len(y) else np.full(2, -1, np.float32)


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Upper left and lower right corner of a mask that is not empty, (2, 2) float32, x, y; the latter exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], dtype=np.float32)


def jittered_box(mask: NDArray[np.bool_], rng: np.random.Generator, exact_share: float) -> NDArray[np.float32]:
    """Box of a mask, exact or with each side moved, (2, 2) float32, x, y; it stays on the canvas and keeps an area.

    Parameters
    ----------
    mask : ndarray of bool, (S, S)
        With at least one pixel.
    rng : numpy.random.Generator
        Drawn from the same number of times whatever it draws.
    exact_share : float
        How often the box is exact, 0..1.

    Returns
    -------
    ndarray of float32, (2, 2)
    """
    exact, spread, noise = rng.random() < exact_share, rng.uniform(0, JITTER), rng.standard_normal((2, 2))
    box = box_of(mask)
    if exact:
        return box
    most = np.minimum(MOST_JITTER_PX, (box[1] - box[0]) / 3)
    moved = box + np.clip(noise * spread * (box[1] - box[0]), -most, most)
    return np.asarray(np.clip(moved, 0, mask.shape[-1]), dtype=np.float32)


def correction(
    truth: NDArray[np.bool_], predicted: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float32], int]:
    """Draw the next click of a user: where the mask is wrong, deepest in its errors.

    Parameters
    ----------
    truth, predicted : ndarray of bool, (H, W)
        Of the same size; truth is not empty.
    rng : numpy.random.Generator
        Drawn from twice.

    Returns
    -------
    point : ndarray of float32, (2,)
        x, y, in pixels of the masks.
    label : int
        `INSIDE` where something is missing, `OUTSIDE` where something is too much.
    """
    wrong = truth ^ predicted
    if not wrong.any():
        return click_inside(truth, rng), INSIDE
    point = click_inside(wrong, rng)
    return point, INSIDE if truth[int(point[1]), int(point[0])] else OUTSIDE


def _point(y: NDArray[np.intp], x: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float32]:
    k = int(rng.integers(len(y)))
    return np.array([x[k] + 0.5, y[k] + 0.5], dtype=np.float32)
