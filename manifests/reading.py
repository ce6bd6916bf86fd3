"""How files become pictures: what a user chooses once for a data set, and what every kind of file must offer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Plane = Literal["axial", "coronal", "sagittal"]


class Reading(BaseModel):
    """What ingest is told of DICOM and NIfTI files; recorded in drop.json, and the same for all drops of a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window: Literal["file", "range"] | tuple[float, float] = "file"
    """Grey values that become black to white: `file` (what the file says; where it says nothing, its whole range, of
    NIfTI `percentiles`), `range` (smallest to largest), or centre and width, after rescale."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Of all voxels of a NIfTI volume; what becomes black and white where the file names no window."""
    every: int = Field(default=1, ge=1)
    """Every n-th frame or slice becomes an image, beginning with the first."""
    plane: Plane = "axial"
    """Slices of NIfTI volumes, along the voxel axis that is nearest."""
    volume: int = Field(default=0, ge=0)
    """Of a NIfTI file with several volumes (time, contrast), the one that is read."""

    def differences(self, other: Reading) -> str:
        """What this one says in so many words and another says otherwise: `every = 1, not 50`; empty if nothing."""
        named = ((name, getattr(self, name), getattr(other, name)) for name in sorted(self.model_fields_set))
        return "; ".join(f"{name} = {own!r}, not {theirs!r}" for name, own, theirs in named if own != theirs)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if isinstance(self.window, tuple) and not (math.isfinite(self.window[0]) and 0 < self.window[1] < math.inf):
            raise ValueError(f"window is (centre, width), and a width is above 0, got {list(self.window)}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles rise from 0 to 100, got {list(self.percentiles)}")
        return self


class Identity(NamedTuple):
    """Who and what a DICOM file says that it shows; used in ingest, never stored or shown."""

    patient: str = ""
    """PatientID."""
    study: str = ""
    """StudyInstanceUID."""
    series: str = ""
    """SeriesInstanceUID."""
    instance: str = ""
    """SOPInstanceUID."""
    burned_in: str = ""
    """BurnedInAnnotation: YES, NO, or empty where the file does not say."""

    @property
    def group(self) -> str:
        """What its images have in common: the patient, else the study, else the series; empty if it names none."""
        return self.patient or next((f"uid:{uid}" for uid in (self.study, self.series) if uid), "")


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says."""

    width: int
    """Pixels after EXIF orientation."""
    height: int
    """Pixels after EXIF orientation."""
    mode: str
    """Pillow's name of the pixel format; of DICOM photometric interpretation and bits, of NIfTI the type."""
    transforms: str
    """Comma-separated codes of what reading does, such as `exif-6,gray16-range`."""
    frames: int = 1
    """Frames or slices in the file, each an image."""
    skipped: str = ""
    """What the file is if it holds no image, such as `RTSTRUCT`; then all else is empty."""
    identity: Identity = field(default=Identity(), repr=False)
    of_frames: tuple[str, ...] = ()
    """`transforms` of each frame, where they differ."""
    affine: tuple[float, ...] = ()
    """Of a NIfTI volume, turned to LPS, row by row, 16 numbers: voxel to millimetres."""


@dataclass(frozen=True, slots=True)
class Request:
    """Which picture of a file is asked for."""

    frame: int = 0
    """Frame or slice, from 0."""
    max_pixels: int = 0
    """Pictures with more pixels are refused before they are decoded."""
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True, slots=True)
class Decoder:
    """How files of one kind are read."""

    header: Callable[[BinaryIO, Reading], Header]
    image: Callable[[bytes, Request], NDArray[np.uint8]]
    """Bytes of the file -> (H, W, 3) RGB."""
    mask: Callable[[bytes, Request], NDArray[np.bool_]]
    """Bytes of the file -> (H, W)."""
    has_frames: bool = False
    """Whether one file can hold several pictures, so that its bytes are worth keeping from one to the next."""


def to_uint8(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map low..high linearly to 0..255, rounded to nearest, what lies outside to the ends; all 0 where low is high.

    Parameters
    ----------
    values : ndarray of any real type, (H, W)
        Not NaN.
    low, high : float
        Values that become black and white.
    """
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
