"""Masks as NIfTI volumes, one a source volume, with its shape and affine."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ReadError
from manifests.inventory_file import format_table
from manifests.nifti_header import nifti_errors, parse_nifti, shape_of
from manifests.reading import Plane
from manifests.types import Status
from manifests.volumes import slice_of, turned
from pipeline.exporting.folder import ExportFolder
from pipeline.exporting.selection import Selection, status_word
from pipeline.exporting.sources import NIFTI, MaskReader, SourceFile, count_others, source_files

INDEX = "index.csv"
COLUMNS = ("image_id", "slice", "label", "split", "status", "file")
NIFTI1_BYTES = 348
"""Size that the header of NIfTI-1 gives itself."""
LENGTHS = (1, 2, 3)
"""Codes of metre, millimetre and micrometre."""


def write_nifti(selection: Selection, folder: ExportFolder) -> dict[str, int]:
    """Write `<volume>.nii.gz` for every source volume of which a slice has a mask, and index.csv of the slices.

    A slice is 1 where its mask is, and 0 where it was not ingested, is in another split, failed or fell back.

    Returns
    -------
    dict[str, int]
        Slices by status, or by the reason why their volume cannot be read; images of other files.
    """
    lines: list[tuple[object, ...]] = []
    counts: Counter[str] = Counter()
    masks = MaskReader()
    for file in source_files(selection, NIFTI):
        name, words = f"{file.stem}.nii.gz", [status_word(masks.status(picture)) for picture in file.pictures]
        if "ok" in words and not folder.has(name):
            try:
                folder.write(name, _volume(selection, file, masks))
            except ReadError as error:
                words = [error.reason] * len(words)
        for picture, word in zip(file.pictures, words, strict=True):
            row = picture.row
            lines.append((row.image_id, row.frame, row.label, row.split.value, word, name if word == "ok" else ""))
        counts.update(words)
    folder.write(INDEX, format_table(COLUMNS, lines))
    return dict(sorted(counts.items())) | count_others(selection, NIFTI)


def _volume(selection: Selection, file: SourceFile, masks: MaskReader) -> bytes:
    """The volume of one source file.

    Raises
    ------
    ReadError
        If the source file is missing, changed, or has a header that a volume cannot be made of.
    """
    data = selection.workspace.image_source(file.drop.drop_id).raw(file.first)
    found = [masks.mask(picture) for picture in file.pictures if masks.status(picture) == Status.OK]
    with nifti_errors():
        return encode_nifti(data, file.drop.reading.plane, {mask.row.frame: mask.mask for mask in found})


def encode_nifti(source: bytes, plane: Plane, masks: Mapping[int, NDArray[np.bool_]]) -> bytes:
    """Put masks of slices into a volume like the source's; the same arguments give the same bytes.

    Parameters
    ----------
    source : bytes
        The source's file; no text of its header is taken over.
    plane : Plane
        Along which it was sliced.
    masks : Mapping[int, ndarray of bool, (H, W)]
        By the number of the slice; all others are 0.

    Returns
    -------
    bytes
        A compressed NIfTI file, uint8, 0 and 1.
    """
    import nibabel

    header = parse_nifti(io.BytesIO(source))
    volume = np.zeros(shape_of(header), np.uint8)
    lps = turned(volume, header.get_best_affine())
    for index, mask in masks.items():
        slice_of(lps, plane, index)[...] = mask
    kind: Any = nibabel.Nifti1Image if header["sizeof_hdr"] == NIFTI1_BYTES else nibabel.Nifti2Image
    image = kind(volume, header.get_best_affine())
    for form in ("qform", "sform"):
        affine, code = getattr(header, f"get_{form}")(coded=True)
        getattr(image, f"set_{form}")(affine, int(code))
    unit = int(header["xyzt_units"]) % 8
    image.header["xyzt_units"] = unit if unit in LENGTHS else 0
    return gzip.compress(image.to_bytes(), mtime=0)
