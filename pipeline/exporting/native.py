"""Committed masks at the size of their own images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from manifests.types import ChunkArrays, ImageRow, Status
from pipeline.exporting.selection import Unit
from stages.images import Placement, unletterbox

ARRAYS: Final = ("mask", "score", "placement", "status")
"""What a native mask is made of."""


@dataclass(frozen=True, slots=True)
class NativeMask:
    """One image's committed mask in the image's own pixels."""

    index: int
    """Position in the unit."""
    row: ImageRow
    status: Status
    """FALLBACK: the mask is the whole image; FAILED: it is empty."""
    score: float
    """As the policy gave it; NaN where there is none."""
    mask: NDArray[np.bool_]
    """(row.height, row.width)."""


def native_mask(arrays: ChunkArrays, index: int, row: ImageRow) -> NativeMask:
    """The mask of one image of a chunk, whose `ARRAYS` these are; empty where the image failed."""
    status = Status(int(arrays["status"][index]))
    if status in (Status.OK, Status.FALLBACK):
        mask = to_native(arrays["mask"][index], arrays, index, row)
    else:
        mask = np.zeros((row.height, row.width), bool)
    return NativeMask(index, row, status, float(arrays["score"][index]), mask)


def native_masks(unit: Unit) -> Iterator[NativeMask]:
    """Masks of a unit's chosen images but for those that failed, one at a time.

    Raises
    ------
    StoreError
        If a shard is damaged.
    """
    arrays = unit.read(*ARRAYS)
    for index, row in unit.chosen:
        if arrays["status"][index] in (Status.OK, Status.FALLBACK):
            yield native_mask(arrays, index, row)


def to_native(canvas_mask: NDArray[np.bool_], arrays: ChunkArrays, index: int, row: ImageRow) -> NDArray[np.bool_]:
    """One mask of a chunk's canvas in the image's own pixels.

    Parameters
    ----------
    canvas_mask : ndarray of bool, (S, S)
        On the canvas.
    arrays : ChunkArrays
        Of the chunk, with `placement`.
    index : int
        Position in the chunk.
    row : ImageRow
        The image.

    Returns
    -------
    ndarray of bool, (row.height, row.width)
    """
    return unletterbox(canvas_mask, Placement.of(arrays["placement"][index]), row.height, row.width)
