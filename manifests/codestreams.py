"""The size that a compressed DICOM frame gives itself, asked before a decoder reserves memory for it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from manifests.errors import ReadError

if TYPE_CHECKING:
    from pydicom import Dataset

JPEG_START, JPEG_2000_START, JP2_START = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"
FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xDE, 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that JPEG (SOF0 to SOF15, DHP) and JPEG-LS (SOF55) begin a frame's header with."""
ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
"""Second bytes of markers that no length follows."""


class Extent(NamedTuple):
    """What a decoder reserves memory for."""

    width: int
    height: int
    components: int
    """Samples a pixel."""


def codestream_extent(data: bytes) -> Extent | None:
    """What a JPEG, JPEG-LS or JPEG 2000 codestream declares; None where nothing is found."""
    if data.startswith(JP2_START):
        data = _in_jp2(data)
    if data.startswith(JPEG_2000_START) and len(data) >= 42:
        right, bottom, left, top = struct.unpack(">4I", data[8:24])
        return Extent(right - left, bottom - top, int.from_bytes(data[40:42], "big"))
    position = 2 if data.startswith(JPEG_START) else len(data)
    while position + 10 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:  # what decoders pass over
            position += 1
        elif marker in FRAME_HEADERS:
            height, width, components = struct.unpack(">2HB", data[position + 5 : position + 10])
            return Extent(width, height, components)
        elif marker in ALONE:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _in_jp2(data: bytes) -> bytes:
    """The codestream in a JP2 file, which some writers put into DICOM; empty if there is none."""
    position = 0
    while position + 16 <= len(data):
        length, name = struct.unpack(">I4s", data[position : position + 8])
        head = 16 if length == 1 else 8
        if name == b"jp2c":
            return data[position + head :]
        length = int.from_bytes(data[position + 8 : position + 16], "big") if length == 1 else length
        position = position + length if length >= head else len(data)
    return b""


def check_codestream(dataset: Dataset, frame: int, size: tuple[int, int]) -> None:
    """Refuse a compressed frame whose own size, or number of components, is another than the header's.

    Raises
    ------
    ReadError
        `decode.unreadable`.
    """
    from pydicom import uid
    from pydicom.encaps import get_frame

    syntax = dataset.file_meta.TransferSyntaxUID
    jpegs = (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes)
    if syntax not in jpegs or "PixelData" not in dataset:
        return
    data = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1))
    if codestream_extent(data) != (*size, int(dataset.get("SamplesPerPixel", 1))):
        raise ReadError("decode.unreadable", "the compressed frame has another size than the header says")
