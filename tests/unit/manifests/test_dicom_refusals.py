"""DICOM files that give no picture: damage, bombs, envelopes; and what their errors must not say."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from pydicom.encaps import get_frame
from pydicom.pixels.decoders import JPEG2000LosslessDecoder
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from manifests import dicom_files
from manifests.codestreams import codestream_extent
from manifests.errors import ReadError
from manifests.readers import REASONS, probe
from tests.unit.manifests.dicoms import (
    RAMP,
    SAMPLES,
    compressed,
    dataset,
    dicom,
    encapsulated,
    file_of,
    grey,
    header,
    item,
    table,
    why_not,
)
from tests.unit.manifests.pictures import encode, put, refused

CANARY = "DOE^JANE1969"
GREY = np.tile(RAMP, (4, 4)).astype(np.uint8)


def codestream(syntax=JPEG2000Lossless) -> bytes:
    """A frame of 64 x 64 px."""
    if syntax == JPEGBaseline8Bit:
        return encode(GREY, "JPEG")
    made = dataset(GREY)
    compressed(made, syntax)
    return get_frame(made.PixelData, 0, number_of_frames=1)


def test_truncated_pixels_are_told_at_every_length():
    data = dicom(GREY)
    for length in (1, 100, 255):
        assert why_not(data[:-length]).reason == "decode.truncated"
    assert why_not(data[: -len(GREY.tobytes()) - 12]).reason == "decode.truncated"


def test_file_that_ends_in_its_compressed_frame_is_refused():
    data = compressed(dataset(GREY), JPEG2000Lossless)
    assert why_not(data[:-60]).reason in {"decode.unreadable", "decode.truncated"}


def test_rows_without_pixels_are_truncated():
    made = dataset(GREY)
    del made.PixelData
    assert why_not(file_of(made)).reason == "decode.truncated"


@pytest.mark.parametrize("key", ["Rows", "Columns"])
def test_image_of_no_pixels_is_refused(key):
    assert why_not(dicom(GREY, **{key: 0})).reason == "decode.size"


def test_large_picture_is_refused_before_its_pixels_are_decoded(monkeypatch):
    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    assert why_not(dicom(GREY, Rows=20_000, Columns=20_000)).reason == "decode.too_large"
    assert why_not(dicom(GREY), max_pixels=4095).reason == "decode.too_large"


def test_secure_envelope_is_encrypted():
    envelope = b"\x30\x80" + bytes.fromhex("06092a864886f70d010703") + bytes(200)
    assert why_not(envelope).reason == "decode.encrypted"
    with pytest.raises(ReadError, match=r"decode\.encrypted"):
        header(envelope)


@pytest.mark.parametrize("syntax", [MPEG2MPML, "1.2.840.10008.1.2.4.199"])
def test_codec_that_nobody_knows_has_its_code(syntax):
    data = encapsulated(dataset(GREY), MPEG2MPML, [bytes(100)])
    error = why_not(data.replace(MPEG2MPML.encode(), syntax.encode()))
    assert (error.reason, error.detail) == ("decode.codec", "no decoder for its transfer syntax")


def test_missing_plugin_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    error = why_not(compressed(dataset(GREY), JPEG2000Lossless))
    assert (error.reason, error.detail) == ("decode.codec", "install its decoder: pip install 'medfocus[dicom]'")


# Bombs.


def test_deflated_file_that_grows_without_bound_is_refused(monkeypatch):
    monkeypatch.setattr(dicom_files, "MOST_BYTES", 10_000)
    data = file_of(dataset(GREY), DeflatedExplicitVRLittleEndian)
    assert header(data).width == 64
    start = 144 + struct.unpack("<I", data[140:144])[0]
    packer = zlib.compressobj(wbits=-15)
    bomb = data[:start] + packer.compress(bytes(20_000)) + packer.flush()
    assert why_not(bomb).reason == "decode.too_large"
    with pytest.raises(ReadError, match=r"decode\.too_large"):
        header(bomb)


@pytest.mark.parametrize("length", [0, 4, 2**31])
def test_deflated_bomb_is_found_though_its_meta_information_lies_about_its_length(monkeypatch, length):
    monkeypatch.setattr(dicom_files, "MOST_BYTES", 1000)
    data = file_of(dataset(GREY), DeflatedExplicitVRLittleEndian)
    assert why_not(data[:140] + struct.pack("<I", length) + data[144:]).reason == "decode.too_large"


def test_billions_of_frames_make_no_rows(tmp_path):
    path = put(tmp_path, "a.dcm", dicom(GREY, NumberOfFrames=2**31 - 1))
    with pytest.raises(ReadError, match=r"decode\.too_large: 2147483647 frames, limit 65536"):
        probe(path)


def forged(syntax: str) -> bytes:
    """A frame of 64 x 64 px that declares the most that it can."""
    data = bytearray(codestream(syntax))
    if syntax == JPEG2000Lossless:
        data[8:16] = b"\x7f\xff\xff\xff" * 2
    else:
        at = next(data.index(marker) for marker in (b"\xff\xc0\0", b"\xff\xf7\0") if marker in data)
        data[at + 5 : at + 9] = b"\xff" * 4
    return bytes(data)


def with_components(number: int) -> bytes:
    """A JPEG 2000 frame of 64 x 64 px that declares this many components."""
    data = codestream()
    length = struct.unpack(">H", data[4:6])[0]
    size = data[6:40] + struct.pack(">H", number) + data[42:45] * number
    return data[:4] + struct.pack(">H", len(size) + 2) + size + data[4 + length :]


FORGED = {
    "jpeg 2000": (JPEG2000Lossless, lambda: forged(JPEG2000Lossless)),
    "jpeg": (JPEGBaseline8Bit, lambda: forged(JPEGBaseline8Bit)),
    "jpeg-ls": (JPEGLSLossless, lambda: forged(JPEGLSLossless)),
    "components": (JPEG2000Lossless, lambda: with_components(16_000)),
    "byte before the frame header": (JPEGBaseline8Bit, lambda: b"\xff\xd8\0" + forged(JPEGBaseline8Bit)[2:]),
    "frame of frames": (JPEGBaseline8Bit, lambda: hierarchical()),
    "jp2 with a decoy": (JPEG2000Lossless, lambda: jp2(forged(JPEG2000Lossless), codestream())),
    "no size at all": (JPEG2000Lossless, lambda: b"\xff\x4f" + bytes(90)),
}


def hierarchical() -> bytes:
    """A JPEG whose hierarchy is larger than its first frame."""
    whole = codestream(JPEGBaseline8Bit)
    return whole[:2] + b"\xff\xde\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0" + whole[2:]


def jp2(data: bytes, decoy: bytes = b"") -> bytes:
    """A codestream in a JP2 file, after a box that holds another one."""
    boxes = [(b"jP  ", b"\r\n\x87\n"), (b"free", decoy), (b"jp2c", data)]
    return b"".join(struct.pack(">I4s", 8 + len(content), name) + content for name, content in boxes)


@pytest.mark.parametrize("name", FORGED)
def test_frame_that_declares_more_than_the_header_never_reaches_a_decoder(name, monkeypatch):
    syntax, make = FORGED[name]
    data = encapsulated(dataset(GREY), syntax, [make()])
    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", lambda *_, **__: pytest.fail("decoded"))
    error = why_not(data)
    assert (error.reason, "another size" in error.detail) == ("decode.unreadable", True)


def test_frame_of_another_size_is_refused():
    data = encapsulated(dataset(np.zeros((64, 65), np.uint8)), JPEG2000Lossless, [codestream()])
    assert why_not(data).reason == "decode.unreadable"


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless])
def test_extent_of_an_honest_frame_is_found(syntax):
    assert codestream_extent(codestream(syntax)) == (64, 64, 1)
    assert codestream_extent(jp2(codestream(), b"decoy")) == (64, 64, 1)


def test_damaged_rle_is_refused_though_its_decoder_panics():
    made = dataset(np.zeros((64, 64), np.uint16))
    compressed(made, RLELossless)
    frame = get_frame(made.PixelData, 0, number_of_frames=1)
    overlong = frame[:64] + b"\x81\x00" * (len(frame) // 2)
    error = why_not(encapsulated(dataset(np.zeros((64, 64), np.uint16)), RLELossless, [overlong]))
    assert (error.reason, error.detail) == ("decode.unreadable", "not readable as DICOM (damaged RLE)")


def test_elements_behind_the_pixels_do_not_change_those_before():
    behind = dicom(np.zeros((3, 3), np.uint8), "MONOCHROME1", WindowCenter=1, WindowWidth=9)
    data = dicom(GREY) + behind[behind.index(b"\x28\x00\x02\x00US") : behind.index(b"\xe0\x7f\x10\x00")]
    assert (header(data).width, header(data).transforms) == (64, "dicom,depth-8")
    assert np.array_equal(grey(data), GREY)


# Memory, and what an error says.


class Counted(io.BytesIO):
    """A stream that remembers the most that it was asked for."""

    most = 0

    def read(self, size=-1, /):
        self.most = max(self.most, size)
        return super().read(size)


def test_element_that_says_it_has_gigabytes_is_not_asked_for_them():
    data = dicom(GREY, PatientComments="x" * 100)
    at = data.index(b"x" * 100)
    stream = Counted(data[: at - 4] + b"UT\0\0\xf0\xff\xff\xff" + data[at:])
    with pytest.raises(ReadError, match=r"decode\.truncated"):
        dicom_files.DICOM.header(stream, dicom_files.Reading())
    assert 0 < stream.most < 10_000


HOSTILE = {
    "rows": {"Rows": 0},
    "photometric": {"PhotometricInterpretation": CANARY[:16]},
    "bits": {"BitsAllocated": 7},
    "table": {"VOILUTSequence": [item(LUTDescriptor=[0, 0, 99], LUTData=b"")]},
    "short table": {"VOILUTSequence": [table([1], 0, 16)], "BitsStored": 99},
    "slope": {"RescaleSlope": 0, "RescaleIntercept": 1},
    "frames": {"NumberOfFrames": 9},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_error_says_a_value_of_the_file(name):
    identity = {"PatientName": CANARY, "PatientID": CANARY, "StudyDescription": CANARY}
    error = why_not(dicom(GREY, **identity, **HOSTILE[name]))
    assert CANARY not in f"{error} {error.detail}"
    assert error.detail


def test_element_of_a_length_that_does_not_fit_its_type_is_refused_without_its_bytes():
    data = dicom(GREY, PatientName=CANARY)
    at = data.index(b"\x28\x00\x10\x00US\x02\x00")
    name = CANARY.encode() + b"X"
    broken = data[: at + 6] + struct.pack("<H", len(name)) + name + data[at + 10 :]
    error = why_not(broken)
    assert error.reason == "decode.unreadable"
    assert CANARY not in f"{error} {error.detail}"


def test_flipped_bits_give_pixels_or_a_code(tmp_path):
    whole, random, reasons = (SAMPLES / "MR_small_jp2klossless.dcm").read_bytes(), np.random.default_rng(9), set()
    for _ in range(100):
        data = bytearray(whole)
        for position in random.integers(128, len(data), 5):
            data[position] ^= 1 << random.integers(8)
        try:
            probe(put(tmp_path, "a.dcm", bytes(data)))
        except ReadError as error:
            reasons.add(error.reason)
    assert reasons <= set(REASONS)


def test_bytes_changed_since_ingest_are_told_before_they_are_parsed(tmp_path):
    data = dicom(GREY)
    assert refused(tmp_path, data[:-1], "a.dcm").reason == "decode.truncated"
