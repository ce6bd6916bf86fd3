"""From a decoded Pillow image of any mode to 8-bit RGB, or to a mask.

What each mode becomes; the code is what `ImageRow.transforms` records:

==================  =================  ====================================================================
mode                code               rule
==================  =================  ====================================================================
``1``               ``bilevel``        0 or 255 in all three channels
``L``               ``gray``           the value in all three channels
``RGB``                                unchanged
``P``               ``palette``        colour of the palette
``LA RGBA PA``      ``alpha-black``    value x alpha / 255, rounded; also any mode with a transparent colour
``CMYK``            ``cmyk``           R = (255 - C)(255 - K) / 255, and so on; no colour profile
``YCbCr``           ``ycbcr``          ITU-R BT.601, full range
``I;16 I;16B``      ``gray16-range``   the image's own minimum..maximum becomes 0..255, rounded
``I``               ``gray32-range``   the same
``F``               ``float-range``    the same; NaN and infinity are refused (``decode.nonfinite``)
other               refused            ``decode.mode``; also colour of more than 8 bits a channel, of which
                                       Pillow would keep the high byte only and so lose dark images
==================  =================  ====================================================================

Transparent pixels become black because black is the background of radiographs, ultrasound and MRI and of the masked
image itself; what a file stores under alpha 0 is arbitrary and must not reach a model. The full range is used, not
percentiles, because it is the one window that never clips a lesion; a constant image becomes all 0. A grey TIFF whose
zero is white, which Pillow does not turn for more than 8 bits, is inverted (``inverted``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.errors import ReadError

BLOCK_PX = 1 << 22
"""Pixels that the range window converts at once, so that its float64 copies stay small."""
TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 262, 339
RANGE_CODES: Mapping[str, str] = {
    "I;16": "gray16-range",
    "I;16B": "gray16-range",
    "I;16L": "gray16-range",
    "I": "gray32-range",
    "F": "float-range",
}
ALPHA_MODES = frozenset({"LA", "RGBA", "PA"})


def mode_codes(image: Image.Image) -> tuple[str, ...]:
    """Codes of what `to_rgb` will do, from the header alone.

    Raises
    ------
    ReadError
        `decode.mode` if no rule of the table holds for this pixel format.
    """
    _check_depth(image)
    if image.mode in RANGE_CODES:
        return (RANGE_CODES[image.mode], *(("inverted",) if _is_white_zero(image) else ()))
    if image.mode not in _RULES:
        raise ReadError("decode.mode", f"no rule for pixel format {image.mode}")
    code = _RULES[image.mode][0]
    return (*((code,) if code else ()), *(("alpha-black",) if _has_alpha(image) else ()))


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a loaded image by the table above.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        RGB.

    Raises
    ------
    ReadError
        `decode.mode` or `decode.nonfinite`.
    """
    mode_codes(image)
    if image.mode in RANGE_CODES:
        grey = range_to_uint8(_samples(image))
        grey = 255 - grey if _is_white_zero(image) and grey.any() else grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    if _has_alpha(image):
        return over_black(np.asarray(image.convert("RGBA")))
    return np.array(_RULES[image.mode][1](image), dtype=np.uint8)


def to_mask(image: Image.Image) -> NDArray[np.bool_]:
    """Read a loaded image as a mask: true where any channel is not zero.

    Alpha counts only where the colour is the same everywhere and so says nothing. JPEG surrounds a mask with small
    values that nobody drew, so there the threshold is half of the image's maximum.

    Returns
    -------
    ndarray of bool, (H, W)
        The mask.

    Raises
    ------
    ReadError
        `decode.mode` or `decode.nonfinite`.
    """
    mode_codes(image)
    if image.mode in RANGE_CODES:
        values = _samples(image)
        _finite_range(values)
        return np.asarray(values != 0)
    if _has_alpha(image):
        rgba = np.asarray(image.convert("RGBA"))
        constant = bool((rgba[..., :3] == rgba[0, 0, :3]).all())
        only_alpha = constant and bool(np.ptp(rgba[..., 3]))
        return np.asarray(rgba[..., 3] > 0 if only_alpha else rgba[..., :3].any(axis=-1))
    brightest = np.asarray(_RULES[image.mode][1](image)).max(axis=-1)
    threshold = int(brightest.max()) // 2 if image.format in {"JPEG", "MPO"} else 0
    return np.asarray(brightest > threshold)


def range_to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Map the array's own minimum..maximum linearly to 0..255, rounded to nearest; a constant array to 0.

    Parameters
    ----------
    values : ndarray of any real type, (H, W)
        Samples; never empty.

    Returns
    -------
    ndarray of uint8, (H, W)
        A ramp over the whole range keeps all 256 levels.

    Raises
    ------
    ReadError
        `decode.nonfinite` if a value is NaN or infinite.
    """
    low, high = _finite_range(values)
    scaled = np.zeros(values.shape, dtype=np.uint8)
    if high > low:
        step = max(1, BLOCK_PX // values.shape[1])
        for top in range(0, values.shape[0], step):
            block = (values[top : top + step].astype(np.float64) - low) * (255.0 / (high - low))
            scaled[top : top + step] = np.rint(block)
    return scaled


def over_black(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite over black: round(colour x alpha / 255).

    Parameters
    ----------
    rgba : ndarray of uint8, (H, W, 4)
        Straight (not premultiplied) alpha.

    Returns
    -------
    ndarray of uint8, (H, W, 3)
        RGB.
    """
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
    return ((product + 127) // 255).astype(np.uint8)


def _finite_range(values: NDArray[Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ReadError("decode.nonfinite", "the pixels hold NaN or infinity")
    return low, high


def _samples(image: Image.Image) -> NDArray[Any]:
    """Values of a one-channel image of more than 8 bits; Pillow reads unsigned 32-bit TIFF as signed."""
    values = np.asarray(image)
    unsigned = image.format == "TIFF" and _tag(image, TIFF_SAMPLE_FORMAT, (1,)) in {1, (1,)}
    return values.view(np.uint32) if image.mode == "I" and values.dtype == np.int32 and unsigned else values


def _tag(image: Image.Image, tag: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(tag, default)


def _is_white_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and _tag(image, TIFF_PHOTOMETRIC, 1) == 0


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _check_depth(image: Image.Image) -> None:
    """Refuse what Pillow would cut down to 8 bits, and a transparent value in 16-bit grey."""
    if image.mode in RANGE_CODES:
        if "transparency" in image.info:
            raise ReadError("decode.mode", "16-bit grey with a transparent value")
        return
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        netpbm_maximum = arguments[1] if image.format == "PPM" and len(arguments) > 1 else 0
        if ";16" in str(arguments[0]) or (isinstance(netpbm_maximum, int) and netpbm_maximum > 255):
            raise ReadError("decode.mode", f"{image.mode} of 16 bits a channel")


def _to(mode: str) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.convert(mode).convert("RGB")


_RULES: Mapping[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "1": ("bilevel", _to("L")),
    "L": ("gray", _to("L")),
    "RGB": ("", _to("RGB")),
    "P": ("palette", _to("RGB")),
    "CMYK": ("cmyk", _to("RGB")),
    "YCbCr": ("ycbcr", _to("RGB")),
    "LA": ("gray", _to("RGBA")),
    "PA": ("palette", _to("RGBA")),
    "RGBA": ("", _to("RGBA")),
}
