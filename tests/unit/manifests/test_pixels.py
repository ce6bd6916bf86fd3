"""Every pixel format has one rule, and its golden values."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.readers import probe
from tests.unit.manifests.pictures import encode, image_of, png, put, read, refused

CANARY = "DOE-JANE-1969"


def grey(values: list[int]) -> list[list[int]]:
    return [[v] * 3 for v in values]


def retagged(tiff: bytes, tag: int, value: int) -> bytes:
    """The file with another value of one short tag."""
    position = tiff.index(struct.pack("<HHI", tag, 3, 1))
    return tiff[: position + 8] + struct.pack("<H", value) + tiff[position + 10 :]


def palette_image() -> Image.Image:
    image = image_of("P", [0, 1, 2])
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    return image


GOLDEN: list[tuple[str, Image.Image, str, dict[str, Any], list[list[int]], str]] = [
    ("bilevel", image_of("1", [0, 255]), "PNG", {}, grey([0, 255]), "bilevel"),
    ("gray", image_of("L", [0, 7, 255]), "PNG", {}, grey([0, 7, 255]), "gray"),
    ("gray key", image_of("L", [9, 7]), "PNG", {"transparency": 9}, grey([0, 7]), "gray,alpha-black"),
    (
        "gray alpha",
        image_of("LA", [(200, 255), (201, 128), (200, 0)]),
        "PNG",
        {},
        grey([200, 101, 0]),
        "gray,alpha-black",
    ),
    ("rgb", image_of("RGB", [(1, 2, 3), (255, 0, 9)]), "BMP", {}, [[1, 2, 3], [255, 0, 9]], ""),
    ("rgba", image_of("RGBA", [(255, 10, 0, 51), (9, 9, 9, 0)]), "PNG", {}, [[51, 2, 0], [0, 0, 0]], "alpha-black"),
    ("palette", palette_image(), "PNG", {}, [[10, 20, 30], [200, 100, 50], [0, 0, 255]], "palette"),
    ("gif", palette_image(), "GIF", {"optimize": False}, [[10, 20, 30], [200, 100, 50], [0, 0, 255]], "palette"),
    (
        "palette alpha",
        palette_image(),
        "PNG",
        {"transparency": b"\x00\x80\xff"},
        [[0, 0, 0], [100, 50, 25], [0, 0, 255]],
        "palette,alpha-black",
    ),
    ("cmyk", image_of("CMYK", [(0, 0, 0, 0), (255, 0, 0, 51)]), "TIFF", {}, [[255, 255, 255], [0, 204, 204]], "cmyk"),
    ("ycbcr", image_of("YCbCr", [(50, 128, 128), (76, 85, 255)]), "TIFF", {}, [[50, 50, 50], [254, 0, 0]], "ycbcr"),
    ("pgm", image_of("L", [3, 4]), "PPM", {}, grey([3, 4]), "gray"),
]


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected", "codes"), [g[1:] for g in GOLDEN], ids=[g[0] for g in GOLDEN]
)
def test_each_mode_becomes_its_golden_rgb(tmp_path, image, kind, options, expected, codes):
    data = encode(image, kind, **options)
    rgb = read(tmp_path, data)
    assert rgb.dtype == np.uint8
    assert rgb[0].tolist() == expected
    assert probe(tmp_path / "a.png").transforms == codes


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_ramp_keeps_250_levels_over_the_full_range(tmp_path, kind):
    ramp = np.linspace(900, 3300, 2400).astype(np.uint16).reshape(40, 60)
    rgb = read(tmp_path, encode(ramp, kind))
    assert len(np.unique(rgb)) >= 250
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert (np.diff(rgb[..., 0].ravel().astype(int)) >= 0).all()


def test_big_endian_16_bit_tiff_is_read_by_range(tmp_path):
    data = encode(Image.frombytes("I;16B", (3, 1), bytes([0, 100, 1, 0, 4, 100])), "TIFF")
    assert read(tmp_path, data)[0, :, 0].tolist() == [0, 39, 255]


def test_inventory_records_the_16_bit_rule(tmp_path):
    header = probe(put(tmp_path, "a.png", encode(np.array([[1, 9]], np.uint16))))
    assert (header.width, header.height, header.mode, header.transforms) == (2, 1, "I;16", "gray16-range")


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_constant_image_of_any_depth_is_black(tmp_path, dtype):
    assert not read(tmp_path, encode(np.full((4, 5), 7, dtype), "TIFF")).any()


def test_signed_32_bit_range_does_not_overflow(tmp_path):
    values = np.array([[-(2**31), 0, 2**31 - 1]], np.int32)
    assert read(tmp_path, encode(values, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


def test_unsigned_32_bit_tiff_does_not_turn_negative(tmp_path):
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32).view(np.int32)
    data = retagged(encode(values, "TIFF"), 339, 1)
    assert read(tmp_path, data)[0, :, 0].tolist() == [0, 128, 255]


def test_float_0_to_1_becomes_full_range(tmp_path):
    assert read(tmp_path, encode(np.array([[0, 0.5, 1]], np.float32), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


def test_large_window_is_converted_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("manifests.pixels.BLOCK_PX", 20)
    values = np.arange(70, dtype=np.uint16).reshape(7, 10)
    expected = np.rint(values * (255 / 69))
    assert np.array_equal(read(tmp_path, encode(values))[..., 2], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_float_is_refused(tmp_path, bad):
    data = encode(np.array([[0, bad, 1]], np.float32), "TIFF")
    assert refused(tmp_path, data, "a.tif").reason == "decode.nonfinite"


def test_16_bit_tiff_whose_zero_is_white_is_inverted(tmp_path):
    data = retagged(encode(np.array([[0, 100]], np.uint16), "TIFF"), 262, 0)
    assert read(tmp_path, data, "a.tif")[0, :, 0].tolist() == [255, 0]
    assert probe(tmp_path / "a.tif").transforms == "gray16-range,inverted"


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_is_refused_instead_of_cut_to_8(tmp_path, colour, channels):
    data = png((2, 1), 16, colour, b"\0" + bytes(4 * channels))
    assert refused(tmp_path, data).reason == "decode.mode"


def test_16_bit_netpbm_colour_and_lab_are_refused(tmp_path):
    assert refused(tmp_path, b"P6 2 1 65535\n" + bytes(12), "a.ppm").reason == "decode.mode"
    assert refused(tmp_path, encode(Image.new("LAB", (2, 2)), "TIFF"), "a.tif").reason == "decode.mode"


def test_16_bit_grey_with_transparent_value_is_refused(tmp_path):
    data = encode(Image.fromarray(np.array([[1, 9]], np.uint16)), transparency=9)
    assert refused(tmp_path, data).reason == "decode.mode"
