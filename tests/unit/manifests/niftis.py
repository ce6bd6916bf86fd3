"""Small NIfTI files of every kind, made in the test itself, and what they are expected to show."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from manifests.errors import ReadError
from manifests.readers import MAX_PIXELS, REASONS, decoder_of
from manifests.reading import Header, Reading, Request

SAMPLES = Path(nibabel.__file__).parent / "tests" / "data"
RAS = np.diag([1.0, 1.0, 1.0, 1.0])
PLANES = ("axial", "coronal", "sagittal")


def nifti(
    values: NDArray[Any],
    affine: NDArray[Any] = RAS,
    image_class: type[nibabel.Nifti1Image] = nibabel.Nifti1Image,
    order: str = "<",
    **fields: Any,
) -> bytes:
    """A file of stored values, with fields of its header by name."""
    header = image_class.header_class(endianness=order)
    header.set_data_dtype(values.dtype)
    image = image_class(values, affine, header)
    data = bytearray(image.to_bytes())
    size = image_class.header_class.template_dtype.itemsize
    patched = image_class.header_class(bytes(data[:size]), endianness=order, check=False)
    for name, value in fields.items():
        patched[name] = value
    data[:size] = patched.binaryblock
    return bytes(data)


def zipped(data: bytes) -> bytes:
    """The file compressed."""
    return gzip.compress(data, mtime=0)


def picture(data: bytes, frame: int = 0, **reading: Any) -> NDArray[np.uint8]:
    """One slice, (H, W), or (H, W, 3) of colour."""
    rgb = decoder_of("a.nii").image(data, Request(frame, MAX_PIXELS, Reading(**reading)))
    assert rgb.dtype == np.uint8
    return rgb[..., 0] if (rgb == rgb[..., :1]).all() else rgb


def header(data: bytes, **reading: Any) -> Header:
    """What the file's header says."""
    return decoder_of("a.nii").header(io.BytesIO(data), Reading(**reading))


def why_not(data: bytes, frame: int = 0, **reading: Any) -> ReadError:
    """Why a slice is refused."""
    with pytest.raises(ReadError) as caught:
        picture(data, frame, **reading)
    assert caught.value.reason in REASONS
    return caught.value


def looked_at(values: NDArray[Any], affine: NDArray[Any], plane: str) -> NDArray[Any]:
    """Slices (n, H, W) of a plane by nibabel's canonical axes: right, front, head become what a viewer shows."""
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    ras = np.asarray(canonical.dataobj)
    if plane == "axial":  # rows from front to back, columns from the patient's right to the left
        return ras[::-1, ::-1].transpose(2, 1, 0)
    if plane == "coronal":  # rows from head to feet, columns from right to left; slices from the front
        return ras[::-1, ::-1, ::-1].transpose(1, 2, 0)
    return ras[::-1, ::-1, ::-1].transpose(0, 2, 1)  # head to feet, front to back; slices from the right
