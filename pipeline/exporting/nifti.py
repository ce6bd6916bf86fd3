"""Masks as NIfTI volumes, one a source volume, with its shape and affine."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ReadError
from manifests.inventory_file import format_table
from manifests.reading import Plane
from manifests.types import Status
from manifests.volumes import slice_of, turned
from pipeline.exporting.folder import ExportFolder
from pipeline.exporting.selection import Selection, status_word
from pipeline.exporting.sources import NIFTI, MaskReader, SourceFile, count_others, source_files

if TYPE_CHECKING:
    from nibabel import Nifti1Header

INDEX = "index.csv"
COLUMNS = ("image_id", "slice", "label", "split", "status", "file")
GZIP = b"\x1f\x8b"
NIFTI1_BYTES = 348
"""Size that the header of NIfTI-1 gives itself."""


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
        If the source file is missing or changed.
    """
    data = selection.workspace.image_source(file.drop.drop_id).raw(file.first)
    found = [masks.mask(picture) for picture in file.pictures if masks.status(picture) == Status.OK]
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

    header = _header(source)
    shape = (*header.get_data_shape(), 1, 1)[:3]
    volume = np.zeros(shape, np.uint8)
    lps = turned(volume, header.get_best_affine())
    for index, mask in masks.items():
        slice_of(lps, plane, index)[...] = mask
    kind: Any = nibabel.Nifti1Image if header["sizeof_hdr"] == NIFTI1_BYTES else nibabel.Nifti2Image
    image = kind(volume, header.get_best_affine())
    for form in ("qform", "sform"):
        affine, code = getattr(header, f"get_{form}")(coded=True)
        getattr(image, f"set_{form}")(affine, int(code))
    image.header.set_xyzt_units(header.get_xyzt_units()[0])
    return gzip.compress(image.to_bytes(), mtime=0)


def _header(source: bytes) -> Nifti1Header:
    import nibabel

    stream = gzip.GzipFile(fileobj=io.BytesIO(source)) if source.startswith(GZIP) else io.BytesIO(source)
    head = stream.read(4)
    stream.seek(0)
    first = NIFTI1_BYTES in (int.from_bytes(head, order) for order in ("little", "big"))
    header: Nifti1Header = (nibabel.Nifti1Header if first else nibabel.Nifti2Header).from_fileobj(stream, check=False)
    return header
