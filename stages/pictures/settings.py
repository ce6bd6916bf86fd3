"""Settings of the pictures and grids stages; the driver takes them from those of `finetune`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.base import Settings
from stages.methods import PictureView

Resize = Literal["letterbox", "squash", "crop"]


class PicturesSettings(Settings):
    """Which view becomes a square of which size."""

    view: PictureView = "original"
    image_px: int = Field(default=224, ge=32, le=1024)
    """Side of the squares, in pixels."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Resize = "letterbox"
    """How an image becomes a square: padded, squashed, or cut to its centre."""
    compositing: Literal["masked", "overlay", "binary", "crop", "blur"] | None = None
    """The view that the masks stage has stored; None composes it anew."""
    canvas_px: int = Field(default=512, ge=64, le=1024, multiple_of=64)


class GridsSettings(Settings):
    """Which segmenter's encoder sees the images, and how coarse its features are kept."""

    model: str = "sam2-lite0"
    """Name in the registry of weights: SAM or SAM2."""
    grid: int = Field(default=8, ge=1, le=64)
    """Cells along each side after average pooling."""
    resize: Resize = "letterbox"
    """As the pictures', so that cells lie on them."""
    canvas_px: int = Field(default=512, ge=64, le=1024, multiple_of=64)
    precision: Literal["float32", "bfloat16"] = "float32"
