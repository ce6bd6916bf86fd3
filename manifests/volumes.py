"""Slices of a NIfTI volume as they are looked at, and back: the one place that knows how a slice lies in its volume.

A volume is turned, by flips and transposes alone, so that its axes run to the patient's left, back and head (LPS, the
orientation of DICOM), each voxel axis taken for the body axis that is nearest (nibabel's `io_orientation`). Axial
slices then show the patient's right on the left and the front on top; coronal ones the right on the left and the head
on top; sagittal ones the front on the left and the head on top. Slices are counted from the feet, the front, the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.reading import Plane

THROUGH: Mapping[Plane, int] = MappingProxyType({"sagittal": 0, "coronal": 1, "axial": 2})
"""Axis of the turned volume that slices of each plane follow one another on."""


def turned(volume: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """The volume, (I, J, K, ...), with axes left, posterior, superior: a view, so that what is written shows there.

    Raises
    ------
    ValueError
        If the affine drops an axis or is not finite.
    """
    from nibabel import orientations

    if not np.isfinite(affine).all():
        raise ValueError("an affine that is not finite")
    found = orientations.io_orientation(affine)
    if np.isnan(found).any():
        raise ValueError("an affine that drops an axis")
    to_lps = orientations.ornt_transform(found, orientations.axcodes2ornt("LPS"))
    view: NDArray[Any] = orientations.apply_orientation(volume, to_lps)
    return view


def turned_affine(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine of the turned volume, (4, 4): equal for volumes that lie alike, however their voxels are stored."""
    from nibabel import orientations

    found = orientations.io_orientation(affine)
    to_lps = orientations.ornt_transform(found, orientations.axcodes2ornt("LPS"))
    turned_back: NDArray[np.float64] = orientations.inv_ornt_aff(to_lps, shape)
    return affine @ turned_back


def slice_of(lps: NDArray[Any], plane: Plane, index: int) -> NDArray[Any]:
    """One slice of a turned volume as it is looked at, (H, W, ...): a view, whose pixels are those of the volume."""
    if plane == "axial":
        return lps[:, :, index].swapaxes(0, 1)
    if plane == "coronal":
        return lps[:, index, ::-1].swapaxes(0, 1)
    return lps[index, :, ::-1].swapaxes(0, 1)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """How the voxel axes of a volume run, such as `RAS`: to the patient's right, front and head."""
    from nibabel import orientations

    return "".join(str(code) for code in orientations.aff2axcodes(affine))
