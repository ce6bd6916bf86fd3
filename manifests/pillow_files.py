"""Ordinary picture files by Pillow: one picture a file, turned upright by its EXIF orientation."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.errors import ReadError
from manifests.pixels import mode_codes, to_mask, to_rgb
from manifests.reading import Decoder, Header, Reading
from manifests.strict_pillow import opened_image

ORIENTATION = 0x0112

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


def _pillow_header(stream: BinaryIO, reading: Reading) -> Header:  # noqa: ARG001  nothing to choose
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


PILLOW = Decoder(
    header=_pillow_header,
    image=lambda data, asked: _decode(data, asked.max_pixels, to_rgb),
    mask=lambda data, asked: _decode(data, asked.max_pixels, to_mask),
)
