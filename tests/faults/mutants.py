"""Real files of every kind that is read, and damaged copies of them that a seed and a number bring back."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.unit.manifests import dicoms
from tests.unit.manifests.pictures import chunk, encode

MOST_ORIGINAL_BYTES = 300_000
Random = np.random.Generator
Original = tuple[str, bytes]
"""Name and content."""

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def originals(kind: str) -> list[Original]:
    """Files of one kind, in an order that is the same everywhere: dicom, nifti or pictures."""
    found = {"dicom": _dicom, "nifti": _nifti, "pictures": _pictures}[kind]()
    return sorted(one for one in found if 0 < len(one[1]) <= MOST_ORIGINAL_BYTES)


def _dicom() -> list[Original]:
    paths = [*dicoms.SAMPLES.glob("*.dcm"), dicoms.SAMPLES / "dicomdirtests" / "DICOMDIR"]
    # Of the many without a picture, which end in its header, one of each kind is enough.
    left_out = ("rtdose_", "rtplan_", "liver_expb", "reportsi", "waveform")
    return [(path.name, path.read_bytes()) for path in paths if not path.name.startswith(left_out)] + _made_dicom()


def _made_dicom() -> list[Original]:
    """What pydicom has no samples of: tables, functional groups, padding, float, MONOCHROME1; always the same bytes."""
    random, item = np.random.default_rng(0), dicoms.item
    wide = random.integers(0, 4096, (40, 40)).astype(np.uint16)
    frames, rgb = (
        random.integers(0, 4096, (3, 40, 40)).astype(np.uint16),
        random.integers(0, 256, (40, 40, 3), np.uint8),
    )
    tables = [dicoms.table(list(range(0, 4096, 16)), first, bits) for first, bits in ((0, 8), (-100, 12))]
    rescale = item(RescaleSlope=2, RescaleIntercept=-9, RescaleType="US")
    window = item(WindowCenter=[900, 20], WindowWidth=[1001, 50], VOILUTFunction="SIGMOID")
    group = item(PixelValueTransformationSequence=[rescale], FrameVOILUTSequence=[window])
    palette = dicoms.dataset(rgb[..., 0], "PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        palette.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        palette.add_new(f"{name}PaletteColorLookupTableData", "OW", wide.tobytes()[:512])
    made = {
        "voi-lut": dicoms.dataset(wide, "MONOCHROME1", VOILUTSequence=tables, PixelPaddingValue=5),
        "modality-lut": dicoms.dataset(wide, ModalityLUTSequence=tables[:1], PixelPaddingRangeLimit=99),
        "groups": dicoms.dataset(frames, PerFrameFunctionalGroupsSequence=[group] * 3),
        "shared": dicoms.dataset(frames, SharedFunctionalGroupsSequence=[group]),
        "palette": palette,
        "signed": dicoms.dataset(wide.astype(np.int16) - 1024, RescaleSlope=1, RescaleIntercept=-1024, WindowWidth=9),
        "bits": dicoms.dataset(wide >> 8, BitsStored=4),
        "ybr": dicoms.dataset(rgb, "YBR_FULL"),
    }
    for one in made.values():
        one.SOPInstanceUID = one.PatientID = "1.2.3"
    found = [(f"made {name}", dicoms.file_of(one)) for name, one in made.items()]
    syntaxes = {"groups": RLELossless, "voi-lut": JPEG2000Lossless, "signed": JPEGLSLossless, "ybr": RLELossless}
    return found + [(f"packed {name}", dicoms.compressed(made[name], syntax)) for name, syntax in syntaxes.items()]


def _nifti() -> list[Original]:
    import nibabel

    root = Path(nibabel.__file__).parent / "tests" / "data"
    found = [(path.name, path.read_bytes()) for path in root.iterdir() if path.name.endswith((".nii", ".nii.gz"))]
    random = np.random.default_rng(0)
    for kind, order, shape in [
        ("u1", "<", (9, 8, 7)),
        ("i2", ">", (9, 8, 7)),
        ("f4", "<", (6, 5, 4, 3)),
        ("f8", ">", (6, 5)),
    ]:
        values = random.integers(0, 100, shape).astype(f"{order}{kind}")
        for image_class in (nibabel.Nifti1Image, nibabel.Nifti2Image):
            header = image_class.header_class(endianness=order)
            header.set_data_dtype(values.dtype)
            data = image_class(values, np.diag([-1, 2, 3, 1]), header).to_bytes()
            name = f"{image_class.__name__}-{kind}{'be' if order == '>' else 'le'}"
            found += [(f"{name}.nii", data), (f"{name}.nii.gz", gzip.compress(data, mtime=0))]
    colour = np.zeros((5, 6, 7), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    found.append(("rgb24.nii", nibabel.Nifti1Image(colour, np.eye(4)).to_bytes()))
    return found


def _pictures() -> list[Original]:
    random = np.random.default_rng(0)
    rgb, grey = random.integers(0, 256, (20, 30, 3), dtype=np.uint8), random.integers(0, 256, (30, 20), dtype=np.uint8)
    wide = random.integers(0, 65536, (16, 16), dtype=np.uint16)
    alpha, exif = Image.fromarray(rgb).convert("RGBA"), Image.Exif()
    exif[0x0112] = 6
    found = [(f"rgb.{kind}", encode(rgb, kind)) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")]
    found += [(f"grey.{kind}", encode(grey, kind)) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")]
    found += [(f"wide.{kind}", encode(wide, kind)) for kind in ("PNG", "TIFF", "PPM")]
    found += [(f"alpha.{kind}", encode(alpha, kind)) for kind in ("PNG", "TIFF")]
    found += [(f"exif.{kind}", encode(rgb, kind, exif=exif)) for kind in ("PNG", "JPEG", "TIFF")]
    found += [(f"{c}.TIFF", encode(rgb, "TIFF", compression=c)) for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    found.append(("fax.TIFF", encode(Image.fromarray(grey).convert("1"), "TIFF", compression="group4")))
    found.append(("progressive.JPEG", encode(rgb, "JPEG", progressive=True)))
    found.append(("cmyk.JPEG", encode(Image.fromarray(rgb).convert("CMYK"), "JPEG")))
    found.append(("float.TIFF", encode(wide.astype(np.float32), "TIFF")))
    found.append(("palette.PNG", encode(Image.fromarray(rgb).quantize(8), "PNG", transparency=0)))
    return found + _real_pictures()


def _real_pictures(most: int = 50) -> list[Original]:
    """Pictures of the folder MEDFOCUS_DATA, where it is set."""
    folder = os.environ.get("MEDFOCUS_DATA")
    paths = sorted(Path(folder).rglob("*")) if folder else []
    small = [path for path in paths if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".tif", ".bmp"}]
    small = [path for path in small if path.stat().st_size <= MOST_ORIGINAL_BYTES]
    return [(path.name, path.read_bytes()) for path in small[:: max(1, len(small) // most)]]


def mutant(files: Sequence[Original], seed: int, index: int) -> Original:
    """The damaged copy with this number, and the name of what it was made from."""
    random = np.random.default_rng([seed, index])
    name, data = files[random.integers(len(files))]
    other = files[random.integers(len(files))][1]
    packed = data.startswith(b"\x1f\x8b") and random.random() < 0.7  # damage in a gzip stream is mostly found by gzip
    content = bytearray(gzip.decompress(data) if packed else data)
    for _ in range((1, 1, 1, 2, 3)[random.integers(5)]):
        content = bytearray(MUTATIONS[random.integers(len(MUTATIONS))](random, content, other))
    if content.startswith(b"\x89PNG") and random.random() < 0.7:
        content = bytearray(_with_checksums(bytes(content)))
    return name, gzip.compress(bytes(content), 1, mtime=0) if packed else bytes(content)


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks all have the checksum of what they hold, so that damage gets past it."""
    position, parts = 8, [data[:8]]
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        name, payload = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        parts.append(chunk(name, payload) if len(payload) == length else data[position:])
        position += 12 + length
    return b"".join(parts)


def _place(random: Random, size: int) -> int:
    """A position; a third of them in the first kilobyte, where headers are, and a third in the last half."""
    low, high = ((0, min(size, 1024)), (0, size), (size // 2, size))[random.integers(3)]
    return int(random.integers(low, max(low + 1, high)))


def _flip(random: Random, data: bytearray, other: bytes) -> bytes:
    for _ in range(int(random.integers(1, 9))):
        if data:
            data[_place(random, len(data))] ^= 1 << int(random.integers(8))
    return bytes(data)


def _noise(random: Random, data: bytearray, other: bytes) -> bytes:
    start, length = _place(random, len(data)), int(random.integers(1, 65))
    data[start : start + length] = random.bytes(min(length, len(data) - start) if data else 0)
    return bytes(data)


def _truncate(random: Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: _place(random, len(data))])


def _delete(random: Random, data: bytearray, other: bytes) -> bytes:
    start = _place(random, len(data))
    del data[start : start + int(random.integers(1, 257))]
    return bytes(data)


def _duplicate(random: Random, data: bytearray, other: bytes) -> bytes:
    start, length = _place(random, len(data)), int(random.integers(1, 513))
    data[start:start] = data[start : start + length] * int(random.integers(1, 5))
    return bytes(data)


def _insert(random: Random, data: bytearray, other: bytes) -> bytes:
    start = _place(random, len(data))
    data[start:start] = random.bytes(int(random.integers(1, 129)))
    return bytes(data)


def _splice(random: Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: _place(random, len(data))]) + other[_place(random, len(other)) :]


def _smash(random: Random, data: bytearray, other: bytes) -> bytes:
    """Extreme numbers of 16 or 32 bits, either byte order, where a field could be."""
    for _ in range(int(random.integers(1, 5))):
        value, order = EXTREMES[random.integers(len(EXTREMES))], "<>"[random.integers(2)]
        code, width = ("H", 2) if random.random() < 0.5 else ("I", 4)
        start = _place(random, len(data)) // 2 * 2
        if start + width <= len(data):
            struct.pack_into(order + code, data, start, value & (2 ** (8 * width) - 1))
    return bytes(data)


MUTATIONS: Sequence[Callable[[Random, bytearray, bytes], Any]] = (
    *(_flip, _noise, _truncate, _delete, _duplicate, _insert, _splice),
    *(_smash, _smash, _smash),
)
