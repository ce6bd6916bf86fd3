"""DICOM by pydicom: one picture for every frame, as a viewer would show it, and who it belongs to.

The order is that of the standard (PS3.4 N.2): stored values, modality LUT or rescale, window or VOI LUT, and only then
the inversion that MONOCHROME1 asks for. Padding is black whatever comes out of that. Codes that `transforms` records:

======================  ===============================================================================================
``dicom``               always
``modality-lut``        the file's table; ``rescale``: slope and intercept, also those of a frame (functional groups)
``voi-lut``             the file's VOI LUT; ``voi-window``: the file's first window (linear, exact or sigmoid)
``window-C-W``          the window that ingest was given
``range``               smallest to largest value of the frame, without padding
``depth-N``             N of 8 bits or fewer are stored, and 0 to 2^N - 1 is 0 to 255; colour of more bits likewise
``inverted``            MONOCHROME1
``padding-black``       the file names a value of pixels outside the picture
``palette`` ``ybr``     colours by the file's palette; YBR is turned into RGB by the decoder
======================  ===============================================================================================

Texts of errors name no value of the file, for it may be a name.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from manifests.codestreams import check_codestream
from manifests.dicom_values import GREY, colours, grey_levels, value_codes
from manifests.errors import ReadError
from manifests.reading import Decoder, Header, Identity, Reading, Request
from manifests.strict_pillow import DECODE_ERRORS, STRICT

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE, MAGIC = 128, b"DICM"
SECURE = bytes.fromhex("06092a864886f70d010703")
"""Object identifier of enveloped data, which a DICOM file in a secure envelope begins with."""
DEFLATED = "1.2.840.10008.1.2.1.99"
MOST_BYTES = 1 << 29
"""A deflated file may grow to this."""
UNREADABLE = (*DECODE_ERRORS, RuntimeError, MemoryError, AssertionError)
NOT_IMAGES: Mapping[str, str] = MappingProxyType(
    {
        "1.2.840.10008.5.1.4.1.1.481.2": "RTDOSE",
        "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
        "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
        "1.2.840.10008.5.1.4.1.1.66.5": "SEG",
        "1.2.840.10008.5.1.4.1.1.66.7": "SEG",
        "1.2.840.10008.5.1.4.1.1.30": "PARAMETRIC MAP",
        "1.2.840.10008.1.3.10": "DICOMDIR",
    }
)
"""SOP classes with or without pixels that show no picture of a patient; others without rows are told by modality."""
MODALITIES = (
    *("AU", "CT", "DOC", "DX", "ECG", "EEG", "EMG", "EOG", "EPS", "FID", "HD", "KO", "MG", "MR", "PLAN", "PR", "PT"),
    *("REG", "RESP", "RTDOSE", "RTPLAN", "RTRECORD", "RTSTRUCT", "SEG", "SMR", "SR", "STAIN", "US", "XA"),
)
"""Terms of the standard (PS3.3 C.7.3.1.1.1) that are told of files without pixels; any other word could be a name."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_LOCK = Lock()


def parse_header(data: bytes) -> Dataset:
    """All of a file but its pixels, for what must know more of it than a picture; nothing of it gets into a log.

    Raises
    ------
    ReadError
        With a code of `manifests.readers.REASONS`.
    """
    with _told():
        return _parse(io.BytesIO(data), pixels=False)


def read_identity(stream: BinaryIO) -> Identity:
    """Who and what a file says that it shows, whether or not its picture can be read.

    Raises
    ------
    ReadError
        If its header cannot be read at all; with a code of `manifests.readers.REASONS`.
    """
    with _told():
        return _identity(_parse(stream, pixels=False))


def is_dicom(head: bytes) -> bool:
    """Whether a file's first 132 bytes are those of DICOM."""
    return head[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC


def _header(stream: BinaryIO, reading: Reading) -> Header:
    with _told():
        dataset = _parse(stream, pixels=False)
        skipped = _skipped(dataset)
        if skipped:
            return Header(0, 0, "", "", skipped=skipped, identity=_identity(dataset))
        width, height, frames = _size(dataset)
        photometric = str(dataset.PhotometricInterpretation)
        mode = f"{photometric} {int(dataset.BitsStored)}"
        # Only functional groups can make frames differ.
        differing = range(frames if "PerFrameFunctionalGroupsSequence" in dataset else 1)
        codes = tuple(",".join(("dicom", *value_codes(dataset, reading, frame))) for frame in differing)
        of_frames = codes if len(set(codes)) > 1 else ()
        return Header(width, height, mode, codes[0], frames, identity=_identity(dataset), of_frames=of_frames)


def _image(data: bytes, asked: Request) -> NDArray[np.uint8]:
    with _told():
        dataset = _dataset(data)
        pixels = _pixels(dataset, asked)
        if str(dataset.PhotometricInterpretation) in GREY:
            grey = grey_levels(dataset, pixels, asked)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.ascontiguousarray(colours(dataset, pixels))


def _mask(data: bytes, asked: Request) -> NDArray[np.bool_]:
    """A picture as a mask: true where any sample is not zero."""
    with _told():
        dataset = _dataset(data)
        pixels = _pixels(dataset, asked)
        return np.asarray(pixels.any(axis=-1) if pixels.ndim == 3 else pixels != 0)


@contextmanager
def _told() -> Iterator[None]:
    """Strict settings inside; what pydicom raises becomes a `ReadError` that names no value of the file."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with STRICT, np.errstate(all="ignore"):
        try:
            yield
        except ReadError:
            raise
        except (*UNREADABLE, BytesLengthException, InvalidDicomError) as error:
            if "missing dependencies" in str(error) or "plugins are missing" in str(error):
                raise ReadError("decode.codec", "install its decoder: pip install 'medfocus[dicom]'") from error
            if isinstance(error, NotImplementedError) and "'Transfer Syntax UID'" in str(error):
                raise ReadError("decode.codec", "no decoder for its transfer syntax") from error
            if "less than expected" in str(error):
                raise ReadError("decode.truncated", "fewer pixels than the header says") from error
            raise ReadError("decode.unreadable", f"not readable as DICOM ({type(error).__name__})") from error
        except BaseException as error:  # the decoder of RLE is written in Rust, whose panics are no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise ReadError("decode.unreadable", "not readable as DICOM (damaged RLE)") from error


class _Bounded:
    """A stream that is asked for no more than there is: Python reserves as much memory as it is asked to read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.seek, self.tell = stream, stream.seek, stream.tell
        self._size = stream.seek(0, io.SEEK_END)
        stream.seek(0)

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return self._stream.read(left if size < 0 else min(size, left))


def _parse(stream: BinaryIO, *, pixels: bool) -> Dataset:
    import pydicom

    head = stream.read(4096)
    if not head:
        raise ReadError("decode.empty", "0 bytes")
    if SECURE in head[:64] and not is_dicom(head):
        raise ReadError("decode.encrypted", "a DICOM file in a secure envelope")
    bounded = _Bounded(stream)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values of the file
    _check_deflated(bounded)
    dataset = pydicom.dcmread(bounded, force=not is_dicom(head), stop_before_pixels=not pixels)
    if not len(dataset):
        raise ReadError("decode.unreadable", "not a DICOM file, whatever its name says, or damaged")
    if not hasattr(dataset, "file_meta") or "TransferSyntaxUID" not in dataset.file_meta:
        _assume_syntax(dataset)
    return dataset


def _assume_syntax(dataset: Dataset) -> None:
    """A file without its group of meta information is not compressed; its byte order is how pydicom could read it."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _check_deflated(stream: _Bounded) -> None:
    """Refuse what would grow without bound; the meta information is read as pydicom will read it, whatever it says."""
    from pydicom.filereader import _read_file_meta_info, read_preamble

    read_preamble(stream, force=True)  # type: ignore[arg-type]
    if _read_file_meta_info(stream).get("TransferSyntaxUID") == DEFLATED:  # type: ignore[arg-type]
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(stream.read(), MOST_BYTES)
        if inflater.unconsumed_tail:
            raise ReadError("decode.too_large", f"inflates to more than {MOST_BYTES} bytes")
    stream.seek(0)


@lru_cache(maxsize=1)
def _parsed(data: bytes) -> Dataset:
    whole, dataset = (_parse(io.BytesIO(data), pixels=pixels) for pixels in (True, False))
    # What stands behind the pixels, out of order, must not change what ingest was told of those before them.
    for name in PIXELS:
        if name in whole:
            dataset[name] = whole[name]
    return dataset


def _dataset(data: bytes) -> Dataset:
    """The parsed file; the last one is kept, because all its frames are asked for one after another."""
    with _LOCK:
        return _parsed(data)


def _skipped(dataset: Dataset) -> str:
    """What a file is that holds no picture; empty if it holds one."""
    from pydicom.uid import UID

    known = NOT_IMAGES.get(str(dataset.get("SOPClassUID", "")) or _media_class(dataset), "")
    if known or "Rows" in dataset:
        return known
    if "SOPClassUID" not in dataset:
        raise ReadError("decode.unreadable", "not a DICOM file, whatever its name says, or damaged")
    if UID(str(dataset.SOPClassUID)).name.endswith("Image Storage"):
        raise ReadError("decode.truncated", "an image by its class, and the file ends before its size")
    modality = str(dataset.get("Modality", ""))
    return f"{modality if modality in MODALITIES else 'DICOM'} without pixels"


def _media_class(dataset: Dataset) -> str:
    return str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))


def _identity(dataset: Dataset) -> Identity:
    keys = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    said = str(dataset.get("BurnedInAnnotation", "") or "").strip().upper()
    # Any other word could be a name, and what is counted is shown.
    burned_in = said if said in ("YES", "NO") else ""
    patient, study, series, instance = (str(dataset.get(key, "") or "").strip() for key in keys)
    return Identity(patient, study, series, instance, burned_in)


def _size(dataset: Dataset) -> tuple[int, int, int]:
    """Columns, rows and frames."""
    width, height = int(dataset.Columns), int(dataset.Rows)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if width < 1 or height < 1 or frames < 1:
        raise ReadError("decode.size", f"{width} x {height} px, {frames} frames")
    return width, height, frames


def _pixels(dataset: Dataset, asked: Request) -> NDArray[Any]:
    """Stored values of one frame, (H, W) or (H, W, 3)."""
    from pydicom.pixels.utils import pixel_array

    if skipped := _skipped(dataset):
        raise ReadError("decode.mode", f"no picture: {skipped}")
    width, height, frames = _size(dataset)
    if width * height > asked.max_pixels:
        raise ReadError("decode.too_large", f"{width} x {height} px, limit {asked.max_pixels} px")
    if asked.frame >= frames:
        raise ReadError("decode.frames", f"frame {asked.frame} of {frames}")
    if not any(name in dataset for name in PIXELS):
        raise ReadError("decode.truncated", "the file ends before its pixels")
    value_codes(dataset, asked.reading, asked.frame)
    check_codestream(dataset, asked.frame, (width, height))
    pixels: NDArray[Any] = pixel_array(dataset, index=asked.frame)
    if pixels.shape[:2] != (height, width) or pixels.size == 0:
        raise ReadError("decode.unreadable", "the pixels are not as many as the header says")
    return pixels


DICOM = Decoder(header=_header, image=_image, mask=_mask, has_frames=True)
