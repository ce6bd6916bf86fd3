"""Random views of an image and its masks: another scale, a crop, a turn, a mirror image, another exposure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from stages.images import Placement, content, place

MIRRORED: Final = 0.5
UPSIDE_DOWN: Final = 0.1
TURNED: Final = 0.25
MOST_DEGREES: Final = 25.0
CROPPED: Final = 0.6
SHRUNK: Final = 0.15
"""Shares of the views that are changed in each way."""
SMALLEST_CROP: Final = 0.35
"""Shortest side of a crop, as a share of the image's."""
SMALLEST_OBJECT: Final = 6e-4
"""Objects below are left out of a view, as a share of the canvas."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image whose objects are outlined."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    masks: NDArray[np.bool_]
    """(n, H, W); n may be 0."""
    salient: tuple[bool, ...]
    """For each object, whether a user without a prompt may mean it."""


@dataclass(frozen=True, slots=True)
class View:
    """What the model is shown of an image."""

    canvas: NDArray[np.uint8]
    """(S, S, 3), RGB on black."""
    masks: NDArray[np.bool_]
    """(n, S, S), objects that are still to be seen; n may be 0."""
    salient: tuple[bool, ...]
    content: NDArray[np.bool_]
    """(S, S), where the image lies."""


def random_view(labelled: Labelled, canvas_px: int, rng: np.random.Generator) -> View:
    """Show an image to the model as another scanner and another user might have.

    Parameters
    ----------
    labelled : Labelled
        Image and masks of any size.
    canvas_px : int
        S, side of the canvas, in pixels.
    rng : numpy.random.Generator
        Decides all.

    Returns
    -------
    View
        Image and masks are resampled together, so that outlines stay where the image has them.
    """
    image = Image.fromarray(_exposed(labelled.image, rng))
    masks = [Image.fromarray(m.astype(np.uint8) * np.uint8(255)) for m in labelled.masks]
    image, masks = _turned(image, masks, rng)
    box = _crop_box(image.size, masks, rng)
    placement = _placement(box, canvas_px, rng)
    size = placement.width, placement.height
    canvas = np.zeros((canvas_px, canvas_px, 3), np.uint8)
    canvas[placement.slices] = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))
    seen = np.zeros((len(masks), canvas_px, canvas_px), dtype=bool)
    for k, mask in enumerate(masks):
        seen[k][placement.slices] = np.asarray(mask.resize(size, Image.Resampling.BILINEAR, box=box)) > 127
    kept = np.flatnonzero(seen.sum(axis=(1, 2)) >= SMALLEST_OBJECT * canvas_px**2)
    return View(canvas, seen[kept], tuple(labelled.salient[k] for k in kept), content(placement, canvas_px))


def _exposed(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Other gamma, contrast, brightness, sharpness and noise, each in some of the views."""
    pixels = image.astype(np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels ** np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    if rng.random() < 0.5:
        pixels = (pixels - 0.5) * np.float32(rng.uniform(0.6, 1.3)) + np.float32(0.5 + rng.uniform(-0.12, 0.12))
    if rng.random() < 0.25:
        noise = rng.standard_normal(pixels.shape[:2], dtype=np.float32)[..., None]
        pixels = pixels + np.float32(rng.uniform(0.01, 0.06)) * noise
    exposed = np.clip(pixels * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.2:
        radius = rng.uniform(0.3, 1.6) * max(image.shape) / 512
        exposed = np.asarray(Image.fromarray(exposed).filter(ImageFilter.GaussianBlur(radius)))
    return exposed


def _turned(
    image: Image.Image, masks: Sequence[Image.Image], rng: np.random.Generator
) -> tuple[Image.Image, list[Image.Image]]:
    """Mirror, turn upside down and rotate image and masks together."""
    layers = [image, *masks]
    if rng.random() < MIRRORED:
        layers = [layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for layer in layers]
    if rng.random() < UPSIDE_DOWN:
        layers = [layer.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for layer in layers]
    if rng.random() < TURNED:
        angle = rng.uniform(-MOST_DEGREES, MOST_DEGREES)
        layers = [layer.rotate(angle, Image.Resampling.BILINEAR) for layer in layers]
    return layers[0], layers[1:]


def _crop_box(
    size: tuple[int, int], masks: Sequence[Image.Image], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, upper, right and lower side of the part that is shown; a crop holds a point of a random object."""
    width, height = size
    if rng.random() >= CROPPED:
        return 0, 0, width, height
    w, h = width * rng.uniform(SMALLEST_CROP, 1), height * rng.uniform(SMALLEST_CROP, 1)
    at_x, at_y = rng.uniform(0, width), rng.uniform(0, height)
    if masks:
        y, x = np.nonzero(np.asarray(masks[int(rng.integers(len(masks)))]) > 127)
        if len(y):
            k = int(rng.integers(len(y)))
            at_x, at_y = float(x[k]), float(y[k])
    left = min(max(at_x - w * rng.uniform(0.2, 0.8), 0), width - w)
    upper = min(max(at_y - h * rng.uniform(0.2, 0.8), 0), height - h)
    return left, upper, left + w, upper + h


def _placement(box: tuple[float, float, float, float], canvas_px: int, rng: np.random.Generator) -> Placement:
    """Where the part lies in the canvas: letterboxed as in the pipeline, or smaller and anywhere."""
    fitted = place(max(1, round(box[3] - box[1])), max(1, round(box[2] - box[0])), canvas_px)
    if rng.random() >= SHRUNK:
        return fitted
    scale = rng.uniform(0.5, 1)
    height, width = max(1, round(fitted.height * scale)), max(1, round(fitted.width * scale))
    y0, x0 = (int(rng.integers(canvas_px - side + 1)) for side in (height, width))
    return Placement(y0, x0, height, width)
