"""Small DICOM files of every kind, made in the test itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from manifests.errors import ReadError
from manifests.readers import MAX_PIXELS, REASONS, decoder_of
from manifests.reading import Header, Reading, Request

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
CT, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.3"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
RAMP = np.arange(256).reshape(16, 16)
"""Every value of 8 bits."""


def dataset(pixels: NDArray[Any], photometric: str = "MONOCHROME2", **elements: Any) -> Dataset:
    """A data set of pixels, (H, W), (F, H, W), (H, W, 3) or (F, H, W, 3), and further elements by keyword."""
    made, colour = Dataset(), photometric in COLOUR
    made.SOPClassUID, made.Modality, made.SOPInstanceUID = CT, "CT", generate_uid()
    frames = pixels if pixels.ndim == 3 + colour else pixels[None]
    made.Rows, made.Columns = frames.shape[1:3]
    if len(frames) > 1:
        made.NumberOfFrames = len(frames)
    made.PhotometricInterpretation, made.SamplesPerPixel = photometric, 3 if colour else 1
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    made.HighBit = made.BitsStored - 1
    content = np.ascontiguousarray(frames).astype(pixels.dtype.newbyteorder("<")).tobytes()
    made.PixelData = content + bytes(len(content) % 2)
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 else "OW"
    return made


def file_of(made: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The bytes of a data set as a file."""
    if not hasattr(made, "file_meta"):
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, made, enforce_file_format=True)
    return stream.getvalue()


def dicom(pixels: NDArray[Any], photometric: str = "MONOCHROME2", **elements: Any) -> bytes:
    """A file of pixels, not compressed."""
    return file_of(dataset(pixels, photometric, **elements))


def encapsulated(made: Dataset, syntax: UID, frames: list[bytes]) -> bytes:
    """A file whose pixels are these codestreams."""
    made.PixelData = encapsulate(frames)
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    return file_of(made, syntax)


def compressed(made: Dataset, syntax: UID, **options: Any) -> bytes:
    """A file whose pixels pydicom compressed."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(syntax, generate_instance_uid=False, **options)
    return file_of(made)


def item(**elements: Any) -> Dataset:
    """An item of a sequence."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def table(entries: list[int], first: int, bits: int, *, kind: str = "VOI") -> Dataset:
    """The item of a `VOILUTSequence` or `ModalityLUTSequence`: entries, the value of the first, and their bits."""
    made = Dataset()
    made.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    made.add_new("LUTData", "US", entries)
    if kind == "Modality":
        made.ModalityLUTType = "US"
    return made


def shown(data: bytes, frame: int = 0, **reading: Any) -> NDArray[np.uint8]:
    """The picture of a frame, (H, W, 3)."""
    return decoder_of("a.dcm").image(data, Request(frame, MAX_PIXELS, Reading(**reading)))


def grey(data: bytes, frame: int = 0, **reading: Any) -> NDArray[np.uint8]:
    """The picture of a grey frame, (H, W)."""
    rgb = shown(data, frame, **reading)
    assert rgb.dtype == np.uint8
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


def header(data: bytes, **reading: Any) -> Header:
    """What the file's header says."""
    return decoder_of("a.dcm").header(io.BytesIO(data), Reading(**reading))


def codes(data: bytes, **reading: Any) -> str:
    """What reading does to the file."""
    return header(data, **reading).transforms


def why_not(data: bytes, frame: int = 0, name: str = "a.dcm", max_pixels: int = MAX_PIXELS) -> ReadError:
    """Why a frame is refused."""
    with pytest.raises(ReadError) as caught:
        decoder_of(name).image(data, Request(frame, max_pixels))
    assert caught.value.reason in REASONS
    return caught.value


def linear(values: NDArray[Any], centre: float, width: float) -> NDArray[np.float64]:
    """Levels of a linear window, PS3.3 C.11.2.1.2.1, not rounded."""
    return np.clip(((values - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def spread(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Levels of a range."""
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
