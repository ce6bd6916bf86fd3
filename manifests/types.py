"""The values that the three packages exchange: frozen, slotted, and typed down to shape and unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

ChunkArrays = Mapping[str, NDArray[Any]]
"""Arrays of one chunk by name; the first axis of each is the chunk's rows."""


class Status(IntEnum):
    """What became of one image in one stage; uint8 on disk."""

    ABSENT = 0
    """Not computed yet."""
    OK = 1
    FAILED = 2
    """The outcome's reason says why; the arrays of this row hold fill values."""
    FALLBACK = 3
    """The mask was empty, tiny or full, so that the whole image was used instead."""


class Split(StrEnum):
    """The part of a data set that an image belongs to; `none` takes part in no cell."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a drop, as ingest saw it."""

    row: int
    """Position in the drop, from 0."""
    image_id: str
    """First 16 hex digits of the file's sha256; of a frame of many, of the sha256 of `<the file's sha256>:<frame>`."""
    path: str
    """Path of the image relative to the source root, with forward slashes."""
    mask_path: str
    """Path of the supplied mask relative to the source root; empty if there is none."""
    mask_sha256: str
    """Digest of the mask file's bytes, 64 hex digits; empty if there is none or it could not be read."""
    sha256: str
    """Digest of the file's bytes, 64 hex digits."""
    bytes: int
    """Size of the file in bytes."""
    width: int
    """Width in pixels after EXIF orientation; 0 if the header could not be read."""
    height: int
    """Height in pixels after EXIF orientation; 0 if the header could not be read."""
    mode: str
    """Pillow's name of the pixel format (`L`, `RGB`, `I;16`, ...); empty if unknown."""
    label: str
    """Class name; empty if the image carries no label."""
    split: Split
    group_id: str
    """Salted hash of the patient or study; the image_id where no group is known."""
    duplicate_of: str
    """image_id of the first row with the same bytes, in this drop or an earlier one; empty if it is the first."""
    transforms: str
    """What reading does to the pixels, as the reader's comma-separated codes (`exif-6,gray16-range`)."""
    frame: int = 0
    """Frame of a DICOM file or slice of a NIfTI volume, from 0; 0 where the file is one picture."""

    @property
    def is_frame(self) -> bool:
        """Whether its file holds further pictures."""
        return bool(self.sha256) and self.image_id != self.sha256[:16]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one drop: the unit of a map stage."""

    drop: str
    index: int
    """Position in the drop's chunk grid, from 0."""
    start: int
    """First row."""
    stop: int
    """One past the last row."""

    @property
    def unit(self) -> str:
        """Name of the unit in commits/, staging/ and retired/."""
        return f"{self.index:06d}"

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One fit of one method on one training subset: the unit of a cell stage."""

    method: str
    """Lower-case name without a hyphen at its ends, such as `medfocus` or `original`."""
    fraction: float
    """Share of the training groups, in (0, 1]; 0 where `shots` are given."""
    seed: int
    shots: int = 0
    """Training images a class; 0 where a fraction is given."""

    @property
    def unit(self) -> str:
        """Name of the unit in commits/, staging/ and retired/: `roi-5-0` for 5 percent, `roi-4shot-0` for 4 images."""
        return f"{self.method}-{f'{self.shots}shot' if self.shots else f'{self.fraction * 100:g}'}-{self.seed}"

    @property
    def training(self) -> str:
        """How much training data, in words: `5 %` or `4-shot`."""
        return f"{self.shots}-shot" if self.shots else f"{self.fraction * 100:.4g} %"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a map stage, of shape (rows, *item_shape)."""

    name: str
    item_shape: tuple[int, ...]
    dtype: str
    """NumPy name of the type, such as `uint8` or `float32`."""
    item_dims: tuple[str, ...] = ()
    """Names of the axes after the first, which is always `image`."""
    fill: float = 0.0
    """Fill value of rows that were not computed; NaN is allowed for float types."""
    per_item: bool = False
    """True: inner chunks of a few images in a shard a unit (large items); False: one chunk for all rows of a unit."""

    @property
    def item_bytes(self) -> int:
        """Bytes of one image's part before compression."""
        return math.prod(self.item_shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of one image in one unit."""

    row: int
    """Row in the drop."""
    image_id: str
    status: Status
    reason: str = ""
    """Stable code, such as `decode.truncated` or `mask.empty`; empty when status is OK."""
    detail: str = ""
    """Free text without any source path."""


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a map stage returns for one chunk."""

    arrays: ChunkArrays
    items: tuple[ItemOutcome, ...]
    """One for every row of the chunk, in order."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by step, such as `read`, `encode`, `decode`."""


@dataclass(frozen=True, slots=True)
class StageIdentity:
    """Everything that determines a stage's results, and nothing else: no path, device, batch size or worker count."""

    name: str
    version: int
    """Raised whenever the stage's code would give other results for the same settings."""
    settings: Mapping[str, Any]
    """JSON values only."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every weights file by name."""
    upstream: Mapping[str, str] = field(default_factory=dict)
    """Full fingerprint of every input by its name."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of all fields, 64 hex digits; paths use the first 12."""
        from manifests.fingerprint import digest_json

        return digest_json(
            {
                "name": self.name,
                "version": self.version,
                "settings": self.settings,
                "weights": self.weights,
                "upstream": self.upstream,
            }
        )


def expect_array(name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: str) -> None:
    """Check an array at a border.

    Raises
    ------
    ValueError
        If dtype or shape differ; None in `shape` allows any length. The message names both sides.
    """
    fits = array.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, array.shape, strict=False))
    if not fits or array.dtype != np.dtype(dtype):
        wanted = "(" + ", ".join("any" if w is None else str(w) for w in shape) + ")"
        raise ValueError(f"{name}: expected {wanted} {dtype}, got {array.shape} {array.dtype}")
