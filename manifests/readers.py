"""One picture of a file -> 8-bit RGB array, or one code that says why not; a file of DICOM or NIfTI can hold many.

The rules are in `pixels`, `dicom_files` and `nifti_files`. EXIF orientation is always applied, to images and masks
alike, so that width and height everywhere are those of the upright picture. What a reader cannot use becomes a
`ReadError`, whatever a library raises or only warns about; its text never holds a path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from manifests.dicom_files import DICOM, is_dicom
from manifests.errors import ReadError
from manifests.fingerprint import digest_bytes
from manifests.nifti_files import NIFTI
from manifests.pillow_files import PILLOW
from manifests.reading import Decoder, Header, Reading, Request
from manifests.types import ImageRow

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "file.missing": "the file is not where the inventory says",
        "file.permission": "this user may not read the file",
        "file.irregular": "a folder, pipe or device where a file should be",
        "file.unreadable": "the operating system reports an error when reading the file",
        "changed": "the file's bytes are no longer those that were ingested",
        "decode.empty": "the file has no bytes",
        "decode.unreadable": "not an image, whatever its name says, or damaged",
        "decode.truncated": "the image ends too early",
        "decode.metadata": "the EXIF data are damaged, so that the orientation cannot be trusted",
        "decode.too_large": "more pixels or bytes than the limit; refused before decoding",
        "decode.size": "an image of 0 pixels",
        "decode.encrypted": "a DICOM file in an encrypted envelope",
        "decode.codec": "compressed in a way whose decoder is not installed",
        "decode.frames": "several pages of a picture file, of which one must be chosen by hand; or no such frame",
        "decode.mode": "a pixel format without a rule",
        "decode.nonfinite": "a floating-point image with NaN or infinity, or a volume of nothing else",
        "mask.missing": "the inventory names no mask for this image",
        "mask.changed": "the mask's bytes are no longer those that were ingested",
        "mask.size": "the mask has another size than its image",
        "mask.frames": "the mask's file has another number of frames or slices than its image's",
        "mask.geometry": "the mask is a volume of other axes, spacing or origin than its image",
        "withdrawn": "the image was withdrawn from the data set",
        "poison": "the worker process died each time it worked on this image",
        "upstream.failed": "an earlier stage could not use this image",
    }
)
"""Every code of a failed image that reading can give, and what it means."""

WITHDRAWN, POISON = "withdrawn", "poison"
MAX_PIXELS = 89_478_485
"""Pillow's own limit, a quarter of a gigabyte of RGB: 10,000 x 10,000 pixels are refused."""
BYTES_PER_PIXEL = 8
"""A file may have this many bytes a pixel of the limit: 16-bit RGBA, uncompressed."""
MOST_FRAMES = 1 << 16
"""More frames or slices of one file are refused: each becomes a row, and a header can declare billions."""
SNIFFED_BYTES = 132
DICOMDIR = "DICOMDIR"
_KEPT: dict[tuple[int, int, int, int], tuple[bytes, str]] = {}
"""Bytes and digest of the last file of many frames, by device, inode, size and time of change."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the files of a drop are."""

    root: Path
    """The source folder."""
    locations: Mapping[str, str] = field(default_factory=dict)
    """Path relative to the root of each renamed file by image_id; of its mask by `mask_key(row)`."""
    max_pixels: int = MAX_PIXELS
    """Images with more pixels are refused before they are decoded."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Code by image_id of each image that is not read, whatever is in the source: `WITHDRAWN` or `POISON`."""
    reading: Reading = field(default_factory=Reading)
    """How the drop's DICOM and NIfTI files become pictures."""

    def read(self, row: ImageRow) -> NDArray[np.uint8]:
        """Read one image in full.

        Returns
        -------
        ndarray of uint8, (row.height, row.width, 3)
            RGB, upright.

        Raises
        ------
        ReadError
            With a code of `REASONS`; `changed` if the bytes are not those that were ingested.
        """
        data = self.raw(row)
        decoder = decoder_of(self.locations.get(row.image_id, row.path), data)
        return decoder.image(data, self._request(row))

    def raw(self, row: ImageRow) -> bytes:
        """Read the bytes of one image's file, and of all other frames in it.

        Raises
        ------
        ReadError
            With a code of `REASONS`; `changed` if the bytes are not those that were ingested.
        """
        self._check_refused(row)
        data, digest = self._bytes(self.locations.get(row.image_id, row.path))
        if digest != row.sha256:
            raise ReadError("changed", "ingest the source again" if row.sha256 else "unreadable when it was ingested")
        return data

    def _request(self, row: ImageRow) -> Request:
        return Request(row.frame, self.max_pixels, self.reading)

    def read_mask(self, row: ImageRow) -> NDArray[np.bool_]:
        """Read the supplied mask of one image; its rule is `pixels.to_mask`.

        Returns
        -------
        ndarray of bool, (row.height, row.width)
            True inside.

        Raises
        ------
        ReadError
            `mask.missing` if the row names none, `mask.changed` if the bytes are not those that were ingested,
            `mask.size` if it does not fit the image, or a code of reading.
        """
        self._check_refused(row)
        if not row.mask_path:
            raise ReadError("mask.missing", "no mask was supplied")
        relative = self.locations.get(mask_key(row), row.mask_path)
        with _told_of_the_mask():
            data, digest = self._bytes(relative)
        if digest != row.mask_sha256:
            advice = "restore the mask that was ingested" if row.mask_sha256 else "unreadable when it was ingested"
            raise ReadError("mask.changed", advice)
        decoder = decoder_of(relative, data)
        if row.is_frame or decoder.has_frames:
            self._check_same_frames(row, relative)
        with _told_of_the_mask():
            mask = decoder.mask(data, self._request(row))
        if mask.shape != (row.height, row.width):
            raise _other_size(mask.shape[::-1], (row.width, row.height))
        return mask

    def _check_same_frames(self, row: ImageRow, mask: str) -> None:
        """Refuse a mask of another number of frames than its image, or that lies elsewhere in the body."""
        image = probe(self.root / self.locations.get(row.image_id, row.path), self.reading)
        with _told_of_the_mask():
            other = probe(self.root / mask, self.reading)
        if image.frames != other.frames:
            raise ReadError("mask.frames", f"the mask has {other.frames}, the image {image.frames}")
        if (image.width, image.height) != (other.width, other.height):
            raise _other_size((other.width, other.height), (image.width, image.height))
        if len(image.affine) != len(other.affine) or not np.allclose(image.affine, other.affine, 1e-3, 1e-2):
            raise ReadError("mask.geometry", "mask and image are volumes of other axes, spacing or origin")

    def _check_refused(self, row: ImageRow) -> None:
        if row.image_id in self.refused:
            raise ReadError(self.refused[row.image_id], REASONS[self.refused[row.image_id]])

    def _bytes(self, relative: str) -> tuple[bytes, str]:
        """What a file holds, and its digest; the last file that can hold several pictures is kept."""
        limit = self.max_pixels * BYTES_PER_PIXEL
        with open_regular(self.root / relative) as stream:
            state = os.fstat(stream.fileno())
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
            if kept := _KEPT.get(key):
                return kept
            # Asked for no more than there is: Python reserves as much memory as it is asked to read.
            data = stream.read(min(limit, state.st_size) + 1)
        if len(data) > limit:
            raise ReadError("decode.too_large", f"the file has more than {limit} bytes")
        found = data, digest_bytes(data)
        if decoder_of(relative, data).has_frames:
            _KEPT.clear()
            _KEPT[key] = found
        return found


def _other_size(mask: tuple[int, ...], image: tuple[int, int]) -> ReadError:
    """What is said of a mask whose width and height are not its image's."""
    return ReadError("mask.size", f"mask {mask[0]} x {mask[1]} px, image {image[0]} x {image[1]} px")


def mask_key(row: ImageRow) -> str:
    """Key of a row's mask in the record of renamed files; equal images may have masks of their own."""
    return f"{row.image_id}.mask-{row.mask_sha256[:16]}"


@contextmanager
def _told_of_the_mask() -> Iterator[None]:
    """Say in the detail of a `ReadError` that it is about the mask, not the image."""
    try:
        yield
    except ReadError as error:
        raise ReadError(error.reason, f"mask: {error.detail}") from error


def probe(path: Path, reading: Reading | None = None) -> Header:
    """Read a file's header; pixels are neither decoded nor checked.

    Raises
    ------
    ReadError
        With a code of `REASONS`.
    """
    with open_regular(path) as stream:
        decoder = decoder_of(path.name, stream.read(SNIFFED_BYTES))
        stream.seek(0)
        header = decoder.header(stream, reading or Reading())
    if header.frames > MOST_FRAMES:
        raise ReadError("decode.too_large", f"{header.frames} frames, limit {MOST_FRAMES}")
    return header


def decoder_of(name: str, head: bytes = b"") -> Decoder:
    """Decoder for a file's name and first bytes: DICOM often has no suffix; what else has none is tried by Pillow."""
    lowered = name.lower()
    known = next((decoder for suffix, decoder in DECODERS.items() if lowered.endswith(suffix)), None)
    return known or (DICOM if is_dicom(head) else PILLOW)


def is_image_file(path: Path) -> bool:
    """Whether a file is named like an image, or is DICOM whatever its name; `DICOMDIR` is none."""
    if path.name.lower().endswith(tuple(DECODERS)):
        return True
    if path.name == DICOMDIR:
        return False
    try:
        with open_regular(path) as stream:
            return is_dicom(stream.read(SNIFFED_BYTES))
    except ReadError:
        return False


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; what the operating system refuses is a `ReadError` without the path."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ReadError("file.irregular", "not a regular file")
        with path.open("rb") as stream:
            yield stream
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReadError("file.missing", "no such file") from error
    except PermissionError as error:
        raise ReadError("file.permission", "not readable for this user") from error
    except OSError as error:
        raise ReadError("file.unreadable", errno.errorcode.get(error.errno or 0, "input/output error")) from error


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm"), PILLOW)
    | dict.fromkeys((".dcm", ".dicom"), DICOM)
    | dict.fromkeys((".nii", ".nii.gz"), NIFTI)
)
"""Decoder by suffix: the one place where a new file format is added. Its keys are what ingest takes for images."""
