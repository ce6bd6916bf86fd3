"""The canvas: letterbox and its exact inverse for masks, and the five ways to show a masked image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from manifests.types import expect_array

OVERLAY_ALPHA = 0.5
OVERLAY_COLOUR = (255, 176, 0)
"""Amber: told apart from grey and from blue by every common kind of colour vision."""
OUTLINE_PX = 2
CROP_MARGIN = 0.1
"""Share of the box's longer side that is added on each side."""
BLUR_SIGMA = 1 / 32
"""Standard deviation of the background's blur, as a share of the canvas."""


class Placement(NamedTuple):
    """Where an image lies in its square canvas, in canvas pixels."""

    y0: int
    x0: int
    height: int
    width: int

    @classmethod
    def of(cls, array: NDArray[np.int32]) -> Placement:
        """Placement from a stored row of the `placement` array, (4,) int32."""
        return cls(*(int(v) for v in array))

    def array(self) -> NDArray[np.int32]:
        """y0, x0, height, width as stored, (4,) int32."""
        return np.array(self, dtype=np.int32)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the image's rows and columns in the canvas."""
        return slice(self.y0, self.y0 + self.height), slice(self.x0, self.x0 + self.width)


def place(height: int, width: int, canvas_px: int) -> Placement:
    """Placement of an image of `height` by `width` pixels: long side fills the canvas, centred, no side below 1 px.

    Raises
    ------
    ValueError
        If a side or the canvas has no pixel.
    """
    if min(height, width, canvas_px) < 1:
        raise ValueError(f"an image and its canvas have pixels, got {height} x {width} on {canvas_px}")
    longest = max(height, width)
    h, w = (max(1, round(side * canvas_px / longest)) for side in (height, width))
    return Placement((canvas_px - h) // 2, (canvas_px - w) // 2, h, w)


def letterbox(image: NDArray[Any], canvas_px: int) -> tuple[NDArray[Any], Placement]:
    """Scale an image's or mask's long side to a square canvas, keep its aspect, centre it and pad with zeros.

    Parameters
    ----------
    image : ndarray of uint8, (H, W, 3), or of bool, (H, W)
        An RGB image is resampled bicubically with antialiasing, a mask by nearest neighbour.
    canvas_px : int
        Side of the square, in pixels.

    Returns
    -------
    canvas : ndarray, (canvas_px, canvas_px, 3) uint8 or (canvas_px, canvas_px) bool
        The image on black.
    placement : Placement
        Where the image lies in it.

    Raises
    ------
    ValueError
        If the array is neither, or has no pixel.
    """
    is_mask = image.ndim == 2
    if is_mask:
        expect_array("mask", image, (None, None), "bool")
    else:
        expect_array("image", image, (None, None, 3), "uint8")
    placement = place(image.shape[0], image.shape[1], canvas_px)
    resize = _nearest if is_mask else _bicubic
    canvas = np.zeros((canvas_px, canvas_px, *image.shape[2:]), dtype=image.dtype)
    canvas[placement.slices] = resize(image, placement.height, placement.width)
    return canvas, placement


def unletterbox(canvas_mask: NDArray[np.bool_], placement: Placement, height: int, width: int) -> NDArray[np.bool_]:
    """Bring a mask from the canvas back to the image's own pixels, by nearest neighbour.

    Parameters
    ----------
    canvas_mask : ndarray of bool, (S, S)
        Mask on the canvas.
    placement : Placement
        What `letterbox` returned for the image.
    height, width : int
        Size of the original image, in pixels.

    Returns
    -------
    ndarray of bool, (height, width)

    Raises
    ------
    ValueError
        If the mask is not a square of bool, or the placement is not that of such an image on such a canvas.
    """
    expect_array("canvas_mask", canvas_mask, (canvas_mask.shape[-1], canvas_mask.shape[-1]), "bool")
    expected = place(height, width, canvas_mask.shape[0])
    if placement != expected:
        raise ValueError(f"placement: expected {expected} for an image of {height} x {width}, got {placement}")
    return _nearest(canvas_mask[placement.slices], height, width)


def fit_mask(mask: NDArray[np.bool_], source: Placement, target: Placement) -> NDArray[np.bool_]:
    """Bring a mask from its own image's place in the canvas to that of another image, (S, S), by nearest neighbour."""
    out = np.zeros_like(mask)
    out[target.slices] = _nearest(mask[source.slices], target.height, target.width)
    return out


def content(placement: Placement, canvas_px: int) -> NDArray[np.bool_]:
    """Mask of the whole image on its canvas, without the padding, (canvas_px, canvas_px) bool."""
    mask = np.zeros((canvas_px, canvas_px), dtype=bool)
    mask[placement.slices] = True
    return mask


def border(placement: Placement, canvas_px: int) -> NDArray[np.bool_]:
    """Outermost pixels of an image on its canvas, (canvas_px, canvas_px) bool."""
    edge = np.zeros((canvas_px, canvas_px), dtype=bool)
    inside = edge[placement.slices]
    inside[[0, -1], :] = True
    inside[:, [0, -1]] = True
    return edge


def composite(image: NDArray[np.uint8], mask: NDArray[np.bool_], mode: str, placement: Placement) -> NDArray[np.uint8]:
    """Show a masked image in one of five ways; the padding of the canvas stays black.

    `masked` is x * m, the equation of MedFocusCLIP (arXiv 2501.03839); `overlay` is what its figures show, `binary`
    is the ablation of its repository; `crop` is the mask's box with a margin on a canvas of its own; `blur` keeps the
    mask's pixels and blurs the rest.

    Parameters
    ----------
    image : ndarray of uint8, (S, S, 3)
        RGB canvas.
    mask : ndarray of bool, (S, S)
        Mask on the same canvas.
    mode : str
        One of `COMPOSITING`.
    placement : Placement
        Where the image lies in the canvas.

    Returns
    -------
    ndarray of uint8, (S, S, 3)

    Raises
    ------
    ValueError
        If the mode is unknown, the arrays do not fit each other, or `crop` meets a mask that is empty in the image.
    """
    if mode not in COMPOSITING:
        raise ValueError(f"compositing: expected one of {', '.join(COMPOSITING)}, got {mode!r}")
    side = image.shape[0]
    expect_array("image", image, (side, side, 3), "uint8")
    expect_array("mask", mask, (side, side), "bool")
    return COMPOSITING[mode](image, mask & content(placement, side), placement)


def crop_extent(mask: NDArray[np.bool_], placement: Placement) -> Placement:
    """What `crop` shows of the canvas: the mask's box with a margin, inside the image.

    Raises
    ------
    ValueError
        If the mask is empty.
    """
    ys, xs = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0))
    if not ys:
        raise ValueError("mask: 'crop' needs a mask with at least one pixel in the image")
    margin = round(CROP_MARGIN * max(ys[-1] - ys[0] + 1, xs[-1] - xs[0] + 1))
    rows, columns = placement.slices
    top, bottom = max(rows.start, ys[0] - margin), min(rows.stop, ys[-1] + 1 + margin)
    left, right = max(columns.start, xs[0] - margin), min(columns.stop, xs[-1] + 1 + margin)
    return Placement(top, left, bottom - top, right - left)


def outline(mask: NDArray[np.bool_], width_px: int = OUTLINE_PX) -> NDArray[np.bool_]:
    """Inner edge of a mask, `width_px` pixels wide, (H, W) bool; the array's border counts as outside."""
    inside = mask
    for _ in range(width_px):
        p = np.pad(inside, 1)
        inside = inside & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    return mask & ~inside


def _nearest(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Sample at pixel centres, in whole numbers: no rounding differs between machines."""
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    return mask[np.ix_(rows, columns)]


def _bicubic(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _masked(image: NDArray[np.uint8], mask: NDArray[np.bool_], _placement: Placement) -> NDArray[np.uint8]:
    return image * mask[..., None]


def _overlay(image: NDArray[np.uint8], mask: NDArray[np.bool_], _placement: Placement) -> NDArray[np.uint8]:
    colour = np.array(OVERLAY_COLOUR, dtype=np.float32)
    out = image.copy()
    out[mask] = np.rint((1 - OVERLAY_ALPHA) * image[mask] + OVERLAY_ALPHA * colour).astype(np.uint8)
    out[outline(mask)] = OVERLAY_COLOUR
    return out


def _binary(_image: NDArray[np.uint8], mask: NDArray[np.bool_], _placement: Placement) -> NDArray[np.uint8]:
    return np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * np.uint8(255)


def _crop(image: NDArray[np.uint8], mask: NDArray[np.bool_], placement: Placement) -> NDArray[np.uint8]:
    cropped, _ = letterbox(image[crop_extent(mask, placement).slices], image.shape[0])
    return cropped


def _blur(image: NDArray[np.uint8], mask: NDArray[np.bool_], placement: Placement) -> NDArray[np.uint8]:
    out = np.zeros_like(image)
    inside = Image.fromarray(np.ascontiguousarray(image[placement.slices]))
    out[placement.slices] = np.asarray(inside.filter(ImageFilter.GaussianBlur(BLUR_SIGMA * image.shape[0])))
    out[mask] = image[mask]
    return out


COMPOSITING: Mapping[str, Callable[[NDArray[np.uint8], NDArray[np.bool_], Placement], NDArray[np.uint8]]] = {
    "masked": _masked,
    "overlay": _overlay,
    "binary": _binary,
    "crop": _crop,
    "blur": _blur,
}
"""Ways to show a masked image, by the name that `masks.compositing` and `embeddings.views` use."""
