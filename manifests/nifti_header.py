"""Headers of NIfTI files, mended as nibabel mends them, and the bytes of compressed files."""

from __future__ import annotations

import io
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from manifests.errors import ReadError

if TYPE_CHECKING:
    from nibabel import Nifti1Header

GZIP = b"\x1f\x8b"
LONGEST_HEADER = 540
CIFTI = range(3000, 3100)
"""Intent codes of files that hold matrices in NIfTI's clothes."""
PART = 1 << 16
"""Bytes that are inflated at a time."""
MOST_MEMBERS = 1 << 16
"""A file of more compressed members, which may all be empty, is refused."""
NEVER = 1000
"""Above every level of nibabel's findings."""
SILENT = logging.Logger("nifti", NEVER)
"""Says nothing of what nibabel finds, because that can hold texts of the file."""


def parse_nifti(stream: BinaryIO) -> Nifti1Header:
    """Read the header of a NIfTI-1 or NIfTI-2 file, compressed or not.

    It is mended as by nibabel when it opens a file: a `pixdim[0]` that is not 1 or -1 is 1, a spacing of 0 is 1, a
    negative one loses its sign, an unknown code of qform or sform is 0.

    Raises
    ------
    ReadError
        With a code of `manifests.readers.REASONS`.
    """
    import nibabel

    head = inflated(stream.read(1 << 16), LONGEST_HEADER)
    if not head:
        raise ReadError("decode.empty", "0 bytes")
    for kind, length in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        if length in (int.from_bytes(head[:4], order) for order in ("little", "big")):
            if len(head) < length:
                raise ReadError("decode.truncated", "the header ends too early")
            header: Nifti1Header = kind(head[:length], check=False)  # type: ignore[no-untyped-call]
            shape_of(header)
            if int(header["intent_code"]) in CIFTI:
                raise ReadError("decode.mode", "CIFTI: a matrix of the brain's surface, no volume")
            header.check_fix(SILENT, NEVER)
            return header
    raise ReadError("decode.unreadable", "not a NIfTI file, whatever its name says, or damaged")


def shape_of(header: Nifti1Header) -> tuple[int, int, int]:
    """Voxels along the three axes of space.

    Raises
    ------
    ReadError
        `decode.size` if an axis has none.
    """
    dimensions = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1:4]]
    if not 2 <= dimensions <= 7 or min(sizes[: min(3, dimensions)]) < 1:
        raise ReadError("decode.size", "an axis without voxels, or more axes than NIfTI has")
    return sizes[0], sizes[1], sizes[2] if dimensions > 2 else 1


def volumes_of(header: Nifti1Header) -> int:
    """How many volumes the file says it has."""
    return math.prod(max(1, int(size)) for size in header["dim"][4 : int(header["dim"][0]) + 1])


def inflated(data: bytes, most: int, whole: int = 0) -> bytes:
    """The first bytes of a file, decompressed where it is compressed.

    Parameters
    ----------
    data : bytes
        The file.
    most : int
        So many bytes are returned of a compressed file.
    whole : int
        So many bytes the file has to give; a compressed one is inflated as far, and the checksum behind them tested.

    Raises
    ------
    ReadError
        `decode.truncated` if there are fewer, `decode.too_large` if it has absurdly many members.
    zlib.error
        If it is damaged.
    """
    size = len(data)
    if data.startswith(GZIP):
        found, size = io.BytesIO(), 0
        for part in _inflating(data, max(most, whole)):
            found.write(part[: max(0, most - size)])
            size += len(part)
        data = found.getvalue()
    if size < whole:
        raise ReadError("decode.truncated", "the file ends before its last voxel")
    return data


def _inflating(data: bytes, most: int) -> Iterator[bytes]:
    """What the members of a compressed file hold, a part at a time, until there are more than so many bytes."""
    stream, left, members = io.BytesIO(data), b"", 1
    inflater = zlib.decompressobj(wbits=31)
    while most >= 0:
        left = left or stream.read(PART)
        # One byte more than is wanted, so that the checksum behind the last one is reached.
        part = inflater.decompress(left, min(most + 1, PART))
        if not part and not left and not inflater.eof:
            raise ReadError("decode.truncated", "the compressed file ends too early")
        yield part
        most -= len(part)
        left = inflater.unconsumed_tail
        if inflater.eof:
            left = inflater.unused_data
            left += stream.read(PART) if len(left) < len(GZIP) else b""
            if not left.startswith(GZIP):
                return
            if members == MOST_MEMBERS:
                raise ReadError("decode.too_large", f"a compressed file of more than {MOST_MEMBERS} members")
            inflater, members = zlib.decompressobj(wbits=31), members + 1


@contextmanager
def nifti_errors() -> Iterator[None]:
    """Turn what nibabel and zlib raise into a `ReadError`."""
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):
            yield
    except ReadError:
        raise
    except (HeaderDataError, ValueError, ArithmeticError, LookupError, TypeError, zlib.error, MemoryError) as error:
        raise ReadError("decode.unreadable", f"not readable as NIfTI ({type(error).__name__})") from error
