"""From the stored values of a DICOM frame to 8-bit levels or colours; the table of rules is in `dicom_files`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ReadError
from manifests.reading import Reading, Request, to_uint8

if TYPE_CHECKING:
    from pydicom import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
LEAST_WIDTHS = {"LINEAR": 1.0, "LINEAR_EXACT": 1e-12, "SIGMOID": 1e-12}
"""Smallest width of a window by its function (PS3.3 C.11.2.1)."""
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


def _group(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """Where a setting of one frame is: its functional group, the one all share, or the file itself."""
    for name, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(name) or ()
        if index < len(groups) and groups[index].get(sequence):
            found: Dataset = groups[index][sequence].value[0]
            return found
    return dataset


def value_codes(dataset: Dataset, reading: Reading, frame: int = 0) -> tuple[str, ...]:
    """Codes of what reading does, from the header alone.

    Raises
    ------
    ReadError
        `decode.mode` if there is no rule for this kind of pixels.
    """
    photometric, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsStored)
    if photometric in COLOURS:
        return (*(("ybr",) if photometric != "RGB" else ()), *((f"depth-{bits}",) if bits != 8 else ()))
    if photometric == "PALETTE COLOR":
        return ("palette",)
    if photometric not in GREY or int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ReadError("decode.mode", "no rule for this photometric interpretation")
    modality = _modality(dataset, frame)
    window = _window(dataset, frame, reading)
    padded = ("padding-black",) if _has_padding(dataset) else ()
    inverted = ("inverted",) if photometric == "MONOCHROME1" else ()
    return (*((modality,) if modality else ()), window, *inverted, *padded)


def _modality(dataset: Dataset, frame: int) -> str:
    if dataset.get("ModalityLUTSequence"):
        return "modality-lut"
    holder = _group(dataset, frame, "PixelValueTransformationSequence")
    return "" if _rescale(holder) == (1.0, 0.0) else "rescale"


def _rescale(holder: Dataset) -> tuple[float, float]:
    """Slope and intercept; what the file does not say is 1 and 0."""
    found = [holder.get(name) for name in ("RescaleSlope", "RescaleIntercept")]
    slope, intercept = (
        default if value is None else float(value) for value, default in zip(found, (1, 0), strict=True)
    )
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise ReadError("decode.unreadable", "a rescale slope of 0, or one that is no number")
    return slope, intercept


def _window(dataset: Dataset, frame: int, reading: Reading) -> str:
    """Code of how values after the modality LUT become 0..255."""
    if isinstance(reading.window, tuple):
        return "window-{:g}-{:g}".format(*reading.window)
    if reading.window == "range":
        return "range"
    if dataset.get("VOILUTSequence"):
        return "voi-lut"
    if _has_window(_group(dataset, frame, "FrameVOILUTSequence")):
        return "voi-window"
    bits = int(dataset.BitsStored)
    plain = bits <= 8 and not _modality(dataset, frame) and not int(dataset.get("PixelRepresentation", 0))
    return f"depth-{bits}" if plain else "range"


def _has_window(holder: Dataset) -> bool:
    """Whether there is a window that means something; what the standard forbids counts as none."""
    if holder.get("WindowCenter") is None or holder.get("WindowWidth") is None:
        return False
    least = LEAST_WIDTHS.get(str(holder.get("VOILUTFunction") or "LINEAR"))
    centre, width = _first(holder.WindowCenter), _first(holder.WindowWidth)
    return least is not None and bool(np.isfinite([centre, width]).all()) and width >= least


def _has_padding(dataset: Dataset) -> bool:
    return isinstance(dataset.get("PixelPaddingValue"), int)


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels outside the picture, (H, W); none where all are."""
    if not _has_padding(dataset):
        return np.zeros(stored.shape, dtype=np.bool_)
    ends = [int(dataset.PixelPaddingValue)]
    limit = dataset.get("PixelPaddingRangeLimit")
    ends += [limit] if isinstance(limit, int) else []
    padded = (stored >= min(ends)) & (stored <= max(ends))
    return np.zeros_like(padded) if padded.all() else np.asarray(padded)


def grey_levels(dataset: Dataset, stored: NDArray[Any], asked: Request) -> NDArray[np.uint8]:
    """Levels of one frame, (H, W).

    Values of 16 bits or fewer are looked up: each that occurs goes through the steps once, not once a pixel.
    """
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        return _stepwise(dataset, stored, asked)
    low = int(stored.min())
    places = stored.astype(np.int32) - low
    occurs = np.flatnonzero(np.bincount(places.ravel()))
    table = np.zeros(int(occurs[-1]) + 1, dtype=np.uint8)
    table[occurs] = _stepwise(dataset, occurs + low, asked)
    return table[places]


def _stepwise(dataset: Dataset, stored: NDArray[Any], asked: Request) -> NDArray[np.uint8]:
    """Levels of stored values of any shape; the range is theirs."""
    padded = _padding(dataset, stored)
    values = _rescaled(dataset, stored, asked.frame)
    if not np.isfinite(values).all():
        raise ReadError("decode.nonfinite", "the pixels hold NaN or infinity")
    code = _window(dataset, asked.frame, asked.reading)
    white_zero = str(dataset.PhotometricInterpretation) == "MONOCHROME1"
    if code == "range":
        # Turned over before it is spread, so that an image of one value is black either way.
        values = -values if white_zero else values
        inside = values[~padded]
        grey = to_uint8(values, float(inside.min()), float(inside.max()))
    else:
        levels = _levels(dataset, values, code, asked)
        grey = np.rint(255 - levels if white_zero else levels).astype(np.uint8)
    return np.where(padded, np.uint8(0), grey)


def _rescaled(dataset: Dataset, stored: NDArray[Any], frame: int) -> NDArray[Any]:
    """Values after modality LUT or rescale, (H, W)."""
    code = _modality(dataset, frame)
    if code == "modality-lut":
        return _looked_up(dataset, dataset.ModalityLUTSequence[0], stored)[0]
    if code == "rescale":
        slope, intercept = _rescale(_group(dataset, frame, "PixelValueTransformationSequence"))
        return stored.astype(np.float64) * slope + intercept
    return stored.astype(np.float64)


def _levels(dataset: Dataset, values: NDArray[Any], code: str, asked: Request) -> NDArray[np.float64]:
    """Levels from 0 to 255 by window, VOI LUT or depth, (H, W), not rounded yet."""
    from pydicom.pixels.processing import apply_windowing

    if code.startswith("depth-"):
        spread: NDArray[np.float64] = np.clip(values * (255 / (2 ** int(dataset.BitsStored) - 1)), 0, 255)
        return spread
    if code == "voi-lut":
        found, bits = _looked_up(dataset, dataset.VOILUTSequence[0], np.rint(values).astype(np.int64))
        tabled: NDArray[np.float64] = np.clip(found * (255 / (2**bits - 1)), 0, 255)
        return tabled
    window = _window_alone(_group(dataset, asked.frame, "FrameVOILUTSequence"), asked.reading)
    levels: NDArray[np.float64] = apply_windowing(values, window)
    return levels


def _window_alone(holder: Dataset, reading: Reading) -> Dataset:
    """A data set with a window and nothing else, whose output is 0..255."""
    from pydicom import Dataset

    window = Dataset()
    window.PhotometricInterpretation, window.PixelRepresentation, window.BitsStored = "MONOCHROME2", 0, 8
    if isinstance(reading.window, tuple):
        window.WindowCenter, window.WindowWidth = reading.window
        # The standard's LINEAR has no widths below 1, and at 1 a step instead of a slope.
        window.VOILUTFunction = "LINEAR" if reading.window[1] > 1 else "LINEAR_EXACT"
        return window
    window.WindowCenter, window.WindowWidth = _first(holder.WindowCenter), _first(holder.WindowWidth)
    window.VOILUTFunction = holder.get("VOILUTFunction") or "LINEAR"
    return window


def _first(value: Any) -> float:
    """The first of several windows."""
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _looked_up(dataset: Dataset, item: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Values by a modality or VOI LUT (PS3.3 C.11.1), and the bits of its entries.

    pydicom's own gives 8-bit tables indices of 8 bits, which wrap.
    """
    entries, first, bits = (int(part) for part in item.LUTDescriptor)
    if not 1 <= bits <= 16:
        raise ReadError("decode.unreadable", "a look-up table of a depth that the standard has not")
    table = _entries(dataset, item, entries or 1 << 16, bits)
    if first >= 1 << 15 and values.min() < 0:
        first -= 1 << 16  # the first value is signed where values are, and was read as unsigned
    positions = np.clip(values.astype(np.int64) - first, 0, len(table) - 1)
    return table[positions].astype(np.float64), bits


def _entries(dataset: Dataset, item: Dataset, entries: int, bits: int) -> NDArray[Any]:
    """So many entries of a look-up table; those of 8 bits may be packed two a word, the first one in its low byte."""
    data = item.LUTData
    if isinstance(data, bytes):
        words = np.frombuffer(data, "<u2" if dataset.original_encoding[1] else ">u2")
    else:
        words = np.atleast_1d(data).astype(np.uint16)
    packed = bits <= 8 and len(words) < entries == len(words) * 2 - entries % 2
    table = words.astype("<u2").view(np.uint8) if packed else words
    if len(table) < entries:
        raise ReadError("decode.unreadable", "a look-up table of fewer entries than it says")
    return table[:entries]


def colours(dataset: Dataset, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour of one frame, (H, W, 3)."""
    from pydicom.pixels.processing import apply_color_lut

    if str(dataset.PhotometricInterpretation) == "PALETTE COLOR":
        looked_up = apply_color_lut(pixels.astype(np.int64), dataset)[..., :3]
        return (looked_up >> 8 if looked_up.dtype == np.uint16 else looked_up).astype(np.uint8)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ReadError("decode.unreadable", "the pixels are not as many as the header says")
    return to_uint8(pixels, 0, 2 ** int(dataset.BitsStored) - 1)
