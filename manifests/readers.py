"""One image file -> 8-bit RGB array, or one code that says why not; the rules per pixel format are in `pixels`.

EXIF orientation is always applied, to images and masks alike, so that width and height everywhere are those of the
upright picture. What a reader cannot use becomes a `ReadError`, whatever Pillow raises or only warns about; its text
never holds a path.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.errors import ReadError
from manifests.fingerprint import digest_bytes
from manifests.pixels import mode_codes, to_mask, to_rgb
from manifests.strict_pillow import opened_image
from manifests.types import ImageRow

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "file.missing": "the file is not where the inventory says",
        "file.permission": "this user may not read the file",
        "file.irregular": "a folder, pipe or device where a file should be",
        "file.unreadable": "the operating system reports an error when reading the file",
        "changed": "the file's bytes are no longer those that were ingested",
        "format.later": "DICOM and NIfTI are not read yet",
        "decode.empty": "the file has no bytes",
        "decode.unreadable": "not an image, whatever its name says, or damaged",
        "decode.truncated": "the image ends too early",
        "decode.metadata": "the EXIF data are damaged, so that the orientation cannot be trusted",
        "decode.too_large": "more pixels or bytes than the limit; refused before decoding",
        "decode.size": "an image of 0 pixels",
        "decode.frames": "several pages or frames; one must be chosen by hand",
        "decode.mode": "a pixel format without a rule",
        "decode.nonfinite": "a floating-point image with NaN or infinity",
        "mask.missing": "the inventory names no mask for this image",
        "mask.changed": "the mask's bytes are no longer those that were ingested",
        "mask.size": "the mask has another size than its image",
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
ORIENTATION = 0x0112

T = TypeVar("T")
Upright = Callable[[NDArray[Any]], NDArray[Any]]

_UPRIGHT: Mapping[int, Upright] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""What turns an image of each EXIF orientation upright (EXIF 2.32, tag 0x0112)."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says."""

    width: int
    """Pixels after EXIF orientation."""
    height: int
    """Pixels after EXIF orientation."""
    mode: str
    """Pillow's name of the pixel format."""
    transforms: str
    """Comma-separated codes of what reading does, such as `exif-6,gray16-range`."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """How files of one kind are read."""

    header: Callable[[BinaryIO], Header]
    image: Callable[[bytes, int], NDArray[np.uint8]]
    """Bytes and limit of pixels -> (H, W, 3) RGB."""
    mask: Callable[[bytes, int], NDArray[np.bool_]]
    """Bytes and limit of pixels -> (H, W)."""


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
        self._check_refused(row)
        relative = self.locations.get(row.image_id, row.path)
        data = self._bytes(relative)
        if digest_bytes(data) != row.sha256:
            raise ReadError("changed", "ingest the source again" if row.sha256 else "unreadable when it was ingested")
        return decoder_of(relative).image(data, self.max_pixels)

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
            data = self._bytes(relative)
        if digest_bytes(data) != row.mask_sha256:
            advice = "restore the mask that was ingested" if row.mask_sha256 else "unreadable when it was ingested"
            raise ReadError("mask.changed", advice)
        with _told_of_the_mask():
            mask = decoder_of(relative).mask(data, self.max_pixels)
        if mask.shape != (row.height, row.width):
            sizes = f"mask {mask.shape[1]} x {mask.shape[0]} px, image {row.width} x {row.height} px"
            raise ReadError("mask.size", sizes)
        return mask

    def _check_refused(self, row: ImageRow) -> None:
        if row.image_id in self.refused:
            raise ReadError(self.refused[row.image_id], REASONS[self.refused[row.image_id]])

    def _bytes(self, relative: str) -> bytes:
        limit = self.max_pixels * BYTES_PER_PIXEL
        with open_regular(self.root / relative) as stream:
            # Asked for no more than there is: Python reserves as much memory as it is asked to read.
            data = stream.read(min(limit, os.fstat(stream.fileno()).st_size) + 1)
        if len(data) > limit:
            raise ReadError("decode.too_large", f"the file has more than {limit} bytes")
        return data


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


def probe(path: Path) -> Header:
    """Read a file's header; pixels are neither decoded nor checked.

    Raises
    ------
    ReadError
        With a code of `REASONS`.
    """
    with open_regular(path) as stream:
        return decoder_of(path.name).header(stream)


def decoder_of(name: str) -> Decoder:
    """Decoder for a file name; names without a known suffix are tried as ordinary images."""
    lowered = name.lower()
    return next((decoder for suffix, decoder in DECODERS.items() if lowered.endswith(suffix)), PILLOW)


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


def _pillow_header(stream: BinaryIO) -> Header:
    with opened_image(stream) as image:
        return _describe(image, _orientation(image, stream))


def _describe(image: Image.Image, orientation: int) -> Header:
    """Header of an opened image; Pillow itself turns TIFF, and reports its upright size."""
    width, height = image.size if image.format == "TIFF" or orientation < 5 else image.size[::-1]
    codes = ((f"exif-{orientation}",) if orientation > 1 else ()) + mode_codes(image)
    return Header(width, height, image.mode, ",".join(codes))


def _orientation(image: Image.Image, stream: BinaryIO) -> int:
    """EXIF orientation, 1 where there is none; never decodes pixels, as Pillow does for PNG."""
    exif = Image.Image.getexif(image)
    if image.format == "PNG" and ORIENTATION not in exif:
        exif = Image.Exif()
        exif.load(dict(_png_chunks(stream)).get(b"eXIf", b""))
    value = exif.get(ORIENTATION, 1)
    return value if value in _UPRIGHT else 1


def _png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name of each PNG chunk, with its payload where that is EXIF; leaves the stream where it was."""
    position = stream.tell()
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        payload = stream.read(length) if name == b"eXIf" else b""
        yield name, payload
        stream.seek(length - len(payload) + 4, io.SEEK_CUR)
    stream.seek(position)


def _decode(data: bytes, max_pixels: int, convert: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    """Decode in full after the checks that cost nothing, convert, and turn upright."""
    stream = io.BytesIO(data)
    with opened_image(stream) as image:
        orientation = _orientation(image, stream)
        header = _describe(image, orientation)
        if header.width * header.height > max_pixels:
            raise ReadError("decode.too_large", f"{header.width} x {header.height} px, limit {max_pixels} px")
        if image.format == "PNG" and b"IEND" not in dict(_png_chunks(stream)):
            raise ReadError("decode.truncated", "the last PNG chunk is missing")
        turned = image.format == "TIFF"
        image.load()
        pixels = convert(image)
    return np.ascontiguousarray(pixels if turned or orientation == 1 else _UPRIGHT[orientation](pixels))


def _later(*_: object) -> Any:
    raise ReadError("format.later", REASONS["format.later"])


PILLOW = Decoder(
    header=_pillow_header,
    image=lambda data, limit: _decode(data, limit, to_rgb),
    mask=lambda data, limit: _decode(data, limit, to_mask),
)
LATER = Decoder(_later, _later, _later)

DECODERS: Mapping[str, Decoder] = MappingProxyType(
    dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm"), PILLOW)
    | dict.fromkeys((".dcm", ".nii", ".nii.gz"), LATER)
)
"""Decoder by suffix: the one place where a new file format is added. Its keys are what ingest takes for images."""
