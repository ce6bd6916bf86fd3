"""One image with its mask drawn on it and what was said of it below."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from manifests.types import expect_array
from stages.images import Placement, composite

LINE_SHARE: Final = 1 / 20
"""Height of one line of text, as a share of the canvas' side."""
FONT_SHARE: Final = 0.8
"""Size of the letters, as a share of the line."""


def picture_height(side: int, n_lines: int) -> int:
    """Height in pixels of a picture of a canvas of `side` pixels with so many lines of text."""
    return side + n_lines * _line_px(side)


def captioned(
    canvas: NDArray[np.uint8], mask: NDArray[np.bool_] | None, placement: Placement, lines: tuple[str, ...]
) -> NDArray[np.uint8]:
    """Draw the mask over an image and write lines of text below.

    Parameters
    ----------
    canvas : ndarray of uint8, (S, S, 3)
        The letterboxed image, RGB.
    mask : ndarray of bool, (S, S), or None
        Its mask; None for an image that was used whole.
    placement : Placement
        Where the image lies in the canvas.
    lines : tuple[str, ...]
        Text, one entry a line; what is too long is cut at the edge.

    Returns
    -------
    ndarray of uint8, (picture_height(S, len(lines)), S, 3)
    """
    side = len(canvas)
    expect_array("canvas", canvas, (side, side, 3), "uint8")
    shown = canvas if mask is None else composite(canvas, mask, "overlay", placement)
    picture = Image.new("RGB", (side, picture_height(side, len(lines))), "white")
    picture.paste(Image.fromarray(np.ascontiguousarray(shown)))
    draw, step = ImageDraw.Draw(picture), _line_px(side)
    font = ImageFont.load_default(FONT_SHARE * step)
    for number, line in enumerate(lines):
        draw.text((step // 2, side + number * step), line, fill="black", font=font)
    return np.asarray(picture)


def _line_px(side: int) -> int:
    return max(8, round(side * LINE_SHARE))
