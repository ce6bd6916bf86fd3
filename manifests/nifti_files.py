"""NIfTI by nibabel: every slice of a volume along one plane of the body, windowed as a whole.

Codes that `transforms` records: ``nifti``; how the voxel axes run (``axes-RAS``); the plane; ``volume-N`` where the
file holds several; ``rescale`` (slope and intercept of the file); and the window: ``cal-window`` (the display range
that the file names), ``percentiles-A-B`` of the whole volume, ``range``, or ``window-C-W``. Voxels that are NaN or
infinite are black. Which slice it is, is the row's `frame`. No slice is resampled, however flat its voxels.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ReadError
from manifests.nifti_header import inflated, nifti_errors, parse_nifti, shape_of, volumes_of
from manifests.reading import Decoder, Header, Reading, Request, to_uint8
from manifests.volumes import THROUGH, axis_codes, slice_of, turned, turned_affine

if TYPE_CHECKING:
    from nibabel import Nifti1Header

MOST_BYTES = 1 << 29
"""Larger volumes, uncompressed, are refused."""
MOST_VALUES = 1 << 22
"""Voxels at most that percentiles are taken of, evenly over the volume."""


_SOUND: set[tuple[int, int]] = set()
"""Hash and length of files that were inflated as far as their checksum once, and need not be again."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of a file, as its voxels lie there."""

    stored: NDArray[Any]
    """(I, J, K), or (I, J, K, 3) of colour."""
    affine: NDArray[np.float64]
    """(4, 4): voxel to millimetres, RAS."""
    slope: float
    intercept: float
    shown: tuple[float, float] | None
    """Display range that the file names."""
    n_volumes: int

    def values(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Stored values after rescale."""
        return stored.astype(np.float64) * self.slope + self.intercept


def read_volume(data: bytes, number: int = 0) -> Volume:
    """Read one volume of a NIfTI-1 or NIfTI-2 file, compressed or not.

    Parameters
    ----------
    data : bytes
        The file.
    number : int
        Which of several volumes.

    Raises
    ------
    ReadError
        With a code of `manifests.readers.REASONS`.
    """
    header = parse_nifti(io.BytesIO(data))
    count, shape = volumes_of(header), shape_of(header)
    if number >= count:
        raise ReadError("decode.frames", f"volume {number} of {count}")
    kind, offset = header.get_data_dtype(), max(int(header["vox_offset"]), int(header["sizeof_hdr"]) + 4)
    size = math.prod(shape) * kind.itemsize
    end, key = offset + size * (number + 1), (hash(data), len(data))
    if end > MOST_BYTES:
        raise ReadError("decode.too_large", f"a volume of {size} bytes, limit {MOST_BYTES}")
    plain = inflated(data, end, whole=end if key in _SOUND else min(offset + size * count, MOST_BYTES))
    _SOUND.add(key)
    stored = np.ndarray(shape, kind, plain, offset + size * number, order="F")
    if kind.names:
        stored = np.stack([stored[name] for name in kind.names[:3]], axis=-1)
    if stored.dtype.kind not in "uif":
        raise ReadError("decode.mode", f"no rule for voxels of type {kind}")
    slope, intercept = header.get_slope_inter()
    shown = float(header["cal_min"]), float(header["cal_max"])
    named = all(np.isfinite(shown)) and shown[1] > shown[0]
    scale = (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0.0))
    return Volume(stored, header.get_best_affine(), *scale, shown if named else None, count)


def _header(stream: BinaryIO, reading: Reading) -> Header:
    with nifti_errors():
        header = parse_nifti(stream)
        affine = header.get_best_affine()
        whole = np.lib.stride_tricks.as_strided(np.zeros((), np.uint8), shape_of(header), (0, 0, 0))
        lps = turned(whole, affine)
        height, width = slice_of(lps, reading.plane, 0).shape
        frames, count = lps.shape[THROUGH[reading.plane]], volumes_of(header)
        several = (f"volume-{reading.volume}",) if count > 1 else ()
        slope, intercept = header.get_slope_inter()
        rescale = ("rescale",) if slope is not None and (slope, intercept) != (1, 0) else ()
        colour = bool(header.get_data_dtype().names)
        window = () if colour else (_window(header, reading),)
        codes = ("nifti", f"axes-{axis_codes(affine)}", reading.plane, *several, *rescale, *window)
        kind = str(header.get_value_label("datatype"))
        lies = tuple(float(number) for number in turned_affine(shape_of(header), affine).ravel())
        return Header(width, height, kind, ",".join(codes), frames, affine=lies)


def _image(data: bytes, asked: Request) -> NDArray[np.uint8]:
    with nifti_errors():
        volume = _volume(data, asked.reading.volume)
        stored = _slice(volume, asked)
        if volume.stored.ndim == 4:
            if stored.dtype != np.uint8:
                raise ReadError("decode.mode", "colour of more than 8 bits")
            return np.ascontiguousarray(stored)
        low, high = _ends(data, asked.reading)
        values = volume.values(stored)
        values[~np.isfinite(values)] = low
        return np.repeat(to_uint8(values, low, high)[:, :, None], 3, axis=2)


def _mask(data: bytes, asked: Request) -> NDArray[np.bool_]:
    """One slice of a volume of labels: true where it is not zero."""
    with nifti_errors():
        stored = _slice(_volume(data, 0), asked)
        inside = np.asarray(stored.any(axis=-1) if stored.ndim == 3 else (stored != 0) & (stored == stored))
        return np.ascontiguousarray(inside)


def _slice(volume: Volume, asked: Request) -> NDArray[Any]:
    """Stored values of one slice, (H, W) or (H, W, 3)."""
    lps = turned(volume.stored, volume.affine)
    depth = lps.shape[THROUGH[asked.reading.plane]]
    if asked.frame >= depth:
        raise ReadError("decode.frames", f"slice {asked.frame} of {depth}")
    found = slice_of(lps, asked.reading.plane, asked.frame)
    if found.shape[0] * found.shape[1] > asked.max_pixels:
        raise ReadError("decode.too_large", f"{found.shape[1]} x {found.shape[0]} px, limit {asked.max_pixels} px")
    return found


_LOCK = Lock()
# The last volume is kept, because its slices are asked for one after another, by several threads.
_kept_volume = lru_cache(maxsize=1)(read_volume)


def _volume(data: bytes, number: int) -> Volume:
    with _LOCK:
        return _kept_volume(data, number)


@lru_cache(maxsize=1)
def _kept_ends(data: bytes, reading: Reading) -> tuple[float, float]:
    volume = _kept_volume(data, reading.volume)
    if isinstance(reading.window, tuple):
        centre, width = reading.window
        return centre - width / 2, centre + width / 2
    if reading.window == "file" and volume.shown:
        return volume.shown
    if reading.window == "range":
        return _range(volume)
    flat = volume.stored.reshape(-1, order="F")
    values = volume.values(flat[:: 1 + len(flat) // MOST_VALUES])
    values = values[np.isfinite(values)]
    if not len(values):
        raise ReadError("decode.nonfinite", "no voxel is a number")
    low, high = np.percentile(values, reading.percentiles)
    return float(low), float(high)


def _range(volume: Volume) -> tuple[float, float]:
    """Smallest and largest number after rescale, a slice at a time."""
    ends = []
    for index in range(volume.stored.shape[2]):
        slice_ = volume.stored[:, :, index]
        numbers = slice_[np.isfinite(slice_)]
        ends += [numbers.min(), numbers.max()] if numbers.size else []
    if not ends:
        raise ReadError("decode.nonfinite", "no voxel is a number")
    values = volume.values(np.array([min(ends), max(ends)]))
    return float(values.min()), float(values.max())


def _ends(data: bytes, reading: Reading) -> tuple[float, float]:
    """Values of the volume that become black and white."""
    with _LOCK:
        return _kept_ends(data, reading)


def _window(header: Nifti1Header, reading: Reading) -> str:
    if isinstance(reading.window, tuple):
        return "window-{:g}-{:g}".format(*reading.window)
    if reading.window == "range":
        return "range"
    shown = float(header["cal_min"]), float(header["cal_max"])
    named = all(np.isfinite(shown)) and shown[1] > shown[0]
    return "cal-window" if named else "percentiles-{:g}-{:g}".format(*reading.percentiles)


NIFTI = Decoder(header=_header, image=_image, mask=_mask, has_frames=True)
