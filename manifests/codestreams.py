"""The size that a compressed DICOM frame gives itself, asked before a decoder reserves memory for it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from manifests.errors import ReadError

if TYPE_CHECKING:
    from pydicom import Dataset

JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that JPEG (SOF0 to SOF15) and JPEG-LS (SOF55) begin a frame's header with."""
ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
"""Second bytes of markers that no length follows."""


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG, JPEG-LS or JPEG 2000 codestream declares; None where none is found."""
    if data[:12].endswith(b"\x0d\x0a\x87\x0a"):  # a JP2 file around the codestream
        data = data[max(0, data.find(JPEG_2000_START)) :]
    if data.startswith(JPEG_2000_START) and len(data) >= 24:
        right, bottom, left, top = struct.unpack(">4I", data[8:24])
        return right - left, bottom - top
    position = 2 if data.startswith(JPEG_START) else len(data)
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker in FRAME_HEADERS:
            height, width = struct.unpack(">2H", data[position + 5 : position + 9])
            return width, height
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in ALONE:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def check_codestream(dataset: Dataset, frame: int, size: tuple[int, int]) -> None:
    """Refuse a compressed frame whose own size is another than the header's.

    Raises
    ------
    ReadError
        `decode.unreadable`.
    """
    from pydicom.encaps import get_frame

    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return
    data = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1))
    found = codestream_size(data)
    if found not in (None, size):
        raise ReadError("decode.unreadable", "the compressed frame has another size than the header says")
