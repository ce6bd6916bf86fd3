"""Stored values of DICOM -> levels, by the arithmetic of the standard written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import JPEG2000, ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from manifests.errors import ReadError
from tests.unit.manifests.dicoms import (
    RAMP,
    codes,
    compressed,
    dataset,
    dicom,
    file_of,
    grey,
    header,
    item,
    linear,
    shown,
    spread,
    table,
    why_not,
)
from tests.unit.manifests.pictures import noise

CT_VALUES = np.arange(-1024, 3072, 16, dtype=np.int16).reshape(16, 16)
TWELVE = (RAMP * 16).astype(np.uint16)
"""Values of 12 bits, 0 to 4080."""


# Bit depths.


@pytest.mark.parametrize(("photometric", "expected"), [("MONOCHROME2", RAMP), ("MONOCHROME1", 255 - RAMP)])
def test_eight_bits_are_shown_as_they_are_or_inverted(photometric, expected):
    assert np.array_equal(grey(dicom(RAMP.astype(np.uint8), photometric)), expected)


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_fewer_bits_than_eight_are_spread(bits):
    stored = (RAMP % 2**bits).astype(np.uint8)
    data = dicom(stored, BitsStored=bits)
    assert np.array_equal(grey(data), np.rint(stored * (255 / (2**bits - 1))))
    assert codes(data) == f"dicom,depth-{bits}"


@pytest.mark.parametrize(
    ("kind", "bits", "low", "high"),
    [
        *(("u2", 10, 3, 1000), ("u2", 12, 100, 4095), ("u2", 16, 0, 65535), ("u4", 32, 7, 2**32 - 1)),
        *(("i2", 16, -32768, 32767), ("i2", 12, -5, 2047), ("i4", 32, -(2**31), 2**31 - 1)),
    ],
)
def test_more_bits_are_spread_from_smallest_to_largest_value(kind, bits, low, high):
    stored = np.linspace(low, high, 256).reshape(16, 16).astype(kind)
    data = dicom(stored, BitsStored=bits)
    exact = (stored.astype(np.float64) - low) / (float(high) - low) * 255
    assert np.array_equal(grey(data), np.rint(exact))
    assert codes(data) == "dicom,range"
    assert header(data).mode == f"MONOCHROME2 {bits}"


def test_signed_eight_bits_are_spread_because_they_go_below_zero():
    stored = (RAMP - 128).astype(np.int8)
    assert np.array_equal(grey(dicom(stored)), RAMP)


def test_sixteen_bit_ramp_keeps_its_levels():
    stored = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(grey(dicom(stored)))) == 256


def test_float_pixels_are_spread_and_nan_is_refused():
    made = dataset(TWELVE)
    del made.PixelData
    made.BitsAllocated, made.BitsStored, made.HighBit = 32, 32, 31
    values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)
    made.FloatPixelData = values.tobytes()
    assert np.array_equal(grey(file_of(made)), spread(values.astype(np.float64), -1, 1))
    values[3, 3] = np.nan
    made.FloatPixelData = values.tobytes()
    assert why_not(file_of(made)).reason == "decode.nonfinite"


def test_image_of_one_value_is_black_in_both_polarities():
    flat = np.full((4, 4), 700, np.uint16)
    assert not grey(dicom(flat)).any()
    assert not grey(dicom(flat, "MONOCHROME1")).any()


# Rescale, windows and tables.


def test_rescale_comes_before_the_window_and_inversion_last():
    elements = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 40, "WindowWidth": 400}
    stored = np.arange(300, 812, 2, dtype=np.uint16).reshape(16, 16)
    expected = np.rint(255 - linear(2.0 * stored - 1000, 40, 400))
    data = dicom(stored, "MONOCHROME1", **elements)
    assert np.array_equal(grey(data), expected)
    assert codes(data) == "dicom,rescale,voi-window,inverted"
    swapped = [255 - linear(stored, 40, 400), linear(2.0 * (65535 - stored.astype(int)) - 1000, 40, 400)]
    assert all(np.abs(wrong - expected).max() > 100 for wrong in swapped)


def test_linear_window_is_that_of_the_standard_at_its_ends():
    stored = np.array([[-1, 0, 1, 2047, 2048, 4094, 4095]], np.int16)
    levels = grey(dicom(stored, WindowCenter=2048, WindowWidth=4096))
    assert levels.tolist() == [[0, 0, 0, 127, 128, 255, 255]]


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_each_function_of_a_window_has_its_formula(function, polarity):
    data = dicom(CT_VALUES, polarity, WindowCenter=41, WindowWidth=401, VOILUTFunction=function)
    values = CT_VALUES.astype(np.float64)
    expected = {
        "LINEAR": linear(values, 41, 401),
        "LINEAR_EXACT": np.clip(((values - 41) / 401 + 0.5) * 255, 0, 255),
        "SIGMOID": 255 / (1 + np.exp(-4 * (values - 41) / 401)),
    }[function]
    assert np.array_equal(grey(data), np.rint(255 - expected if polarity == "MONOCHROME1" else expected))


def test_first_of_several_windows_is_used():
    several = dicom(CT_VALUES, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    assert np.array_equal(grey(several), np.rint(linear(CT_VALUES, 40, 400)))


def test_window_of_the_configuration_wins_over_the_file_and_its_table():
    own = {"WindowCenter": 40, "WindowWidth": 400, "VOILUTSequence": [table([0] * 256, 0, 8)]}
    data = dicom(CT_VALUES, **own)
    assert np.array_equal(grey(data, window=(-600, 1500)), np.rint(linear(CT_VALUES, -600, 1500)))
    assert codes(data, window=(-600, 1500)) == "dicom,window--600-1500"


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_narrow_window_of_the_configuration_is_exact(width):
    stored = (np.arange(256) * 4).reshape(16, 16).astype(np.uint16)
    data = dicom(stored, RescaleSlope="0.001", RescaleIntercept=0)
    expected = np.clip(((stored * 0.001 - 0.5) / width + 0.5) * 255, 0, 255)
    assert np.abs(grey(data, window=(0.5, width)) - expected).max() <= 0.5001
    assert codes(data, window=(0.5, width)) == f"dicom,rescale,window-0.5-{width:g}"


def test_range_of_the_configuration_wins_over_the_file():
    data = dicom(CT_VALUES, WindowCenter=40, WindowWidth=400)
    assert np.array_equal(grey(data, window="range"), spread(CT_VALUES.astype(int), -1024, 3056))


def test_window_of_the_configuration_is_after_rescale():
    data = dicom((CT_VALUES + 1024).astype(np.uint16), RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(grey(data, window=(40, 400)), np.rint(linear(CT_VALUES, 40, 400)))


def test_file_table_wins_over_its_window():
    entries = [(7 * n) % 4096 for n in range(4096)]
    data = dicom(TWELVE, BitsStored=12, VOILUTSequence=[table(entries, 0, 12)], WindowCenter=40, WindowWidth=400)
    assert np.array_equal(grey(data), np.rint(np.array(entries)[TWELVE] * 255 / 4095))
    assert codes(data) == "dicom,voi-lut"


def test_eight_bit_table_for_twelve_bit_data_does_not_wrap():
    entries = [n // 16 for n in range(4096)]
    assert np.array_equal(grey(dicom(TWELVE, BitsStored=12, VOILUTSequence=[table(entries, 0, 8)])), TWELVE // 16)


def test_values_beyond_a_table_have_its_first_and_last_entry():
    data = dicom(CT_VALUES, VOILUTSequence=[table([10, 20, 30], -1, 8)])
    expected = np.where(CT_VALUES < 0, 10, np.where(CT_VALUES > 0, 30, 20))
    assert np.array_equal(grey(data), expected)


def packed(entries: NDArray[np.uint8], bits: int, order: str, *, words: bool) -> Dataset:
    """A table of 8-bit entries, two a word, as bytes or as numbers."""
    made = table([0] * len(entries), 0, bits)
    found = np.frombuffer(entries.tobytes() + bytes(len(entries) % 2), "<u2")
    made.add_new("LUTData", *(("US", found.tolist()) if words else ("OW", found.astype(f"{order}u2").tobytes())))
    return made


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize(("order", "syntax"), [("<", ExplicitVRLittleEndian), (">", ExplicitVRBigEndian)])
@pytest.mark.parametrize(("n", "bits"), [(256, 8), (255, 8), (256, 7)])
def test_table_of_two_entries_a_word_is_unpacked(n, bits, order, syntax, words):
    entries = (np.random.default_rng(0).permutation(n) % 2**bits).astype(np.uint8)
    made = dataset(RAMP.astype(np.uint8), VOILUTSequence=[packed(entries, bits, order, words=words)])
    expected = np.rint(entries[np.minimum(RAMP, n - 1)] * (255 / (2**bits - 1)))
    assert np.array_equal(grey(file_of(made, syntax)), expected)


@pytest.mark.parametrize(("n", "entries", "bits"), [(100, 256, 8), (128, 256, 9), (100, 256, 16), (1000, 0, 16)])
def test_table_of_fewer_entries_than_it_says_is_refused(n, entries, bits):
    lut = table([1] * n, 0, bits)
    lut.LUTDescriptor = [entries, 0, bits]
    assert why_not(dicom(RAMP.astype(np.uint8), VOILUTSequence=[lut])).reason == "decode.unreadable"


def test_modality_table_comes_before_the_window():
    entries = [4095 - n for n in range(4096)]
    elements = {"ModalityLUTSequence": [table(entries, 0, 16, kind="Modality")], "WindowCenter": 2000}
    data = dicom(TWELVE, BitsStored=12, WindowWidth=1000, **elements)
    assert np.array_equal(grey(data), np.rint(linear(4095.0 - TWELVE, 2000, 1000)))
    assert codes(data) == "dicom,modality-lut,voi-window"


# MONOCHROME1 and its twin.


def twins() -> dict[str, tuple[bytes, bytes]]:
    """The same picture with 0 as white and with 0 as black."""
    up, down = TWELVE, (4095 - TWELVE).astype(np.uint16)
    entries = [(n * n) >> 12 for n in range(4096)]
    turned = [4095 - entry for entry in entries]
    tables = [{"BitsStored": 12, "VOILUTSequence": [table(found, 0, 12)]} for found in (entries, turned)]
    windows = [{"BitsStored": 12, "WindowCenter": c, "WindowWidth": 1001} for c in (1500, 4095 - 1500 + 1)]
    eight = RAMP.astype(np.uint8)
    return {
        "range": (dicom(up, "MONOCHROME1", BitsStored=12), dicom(down, BitsStored=12)),
        "window": (dicom(up, "MONOCHROME1", **windows[0]), dicom(down, **windows[1])),
        "table": (dicom(up, "MONOCHROME1", **tables[0]), dicom(up, **tables[1])),
        "eight bits": (dicom(eight, "MONOCHROME1"), dicom(255 - eight)),
    }


@pytest.mark.parametrize("name", ["range", "window", "table", "eight bits"])
def test_monochrome1_is_its_twin(name):
    white_zero, black_zero = twins()[name]
    assert np.array_equal(grey(white_zero), grey(black_zero))
    assert len(np.unique(grey(white_zero))) > 50
    assert "inverted" in codes(white_zero)
    assert "inverted" not in codes(black_zero)


# Padding.


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_not_part_of_the_range(photometric):
    stored = np.array([[-2000, 0, 20, 100]], np.int16)
    data = dicom(stored, photometric, PixelPaddingValue=-2000)
    assert grey(data).tolist() == [[0, 0, 51, 255] if photometric == "MONOCHROME2" else [0, 255, 204, 0]]
    assert codes(data).endswith("padding-black")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_range_of_padding_is_black_under_a_window(photometric):
    stored = np.array([[4000, 4090, 4095, 100]], np.uint16)
    ends = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000, "WindowCenter": 100, "WindowWidth": 200}
    assert grey(dicom(stored, photometric, **ends))[0, :3].tolist() == [0, 0, 0]
    assert 120 < grey(dicom(stored, photometric, **ends))[0, 3] < 135


def test_image_of_nothing_but_padding_is_read():
    assert not grey(dicom(np.full((3, 3), -2000, np.int16), PixelPaddingValue=-2000)).any()


# Colour.


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_is_as_stored_by_pixel_or_by_plane(planar):
    made = dataset(noise(1), "RGB", PlanarConfiguration=planar)
    if planar:
        made.PixelData = np.ascontiguousarray(noise(1).transpose(2, 0, 1)).tobytes()
    assert np.array_equal(shown(file_of(made)), noise(1))
    assert codes(file_of(made)) == "dicom"


def test_sixteen_bit_colour_is_spread_over_its_depth():
    wide = noise(2).astype(np.uint16) * 257
    assert np.array_equal(shown(dicom(wide, "RGB")), noise(2))
    assert np.array_equal(shown(dicom(wide >> 4, "RGB", BitsStored=12)), np.rint((wide >> 4) * (255 / 4095)))


def to_rgb(ybr: NDArray[Any]) -> NDArray[np.float64]:
    """PS3.3 C.7.6.3.1.2, the inverse."""
    y, cb, cr = (ybr[..., n].astype(np.float64) - (128 if n else 0) for n in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.clip(rgb, 0, 255)


def test_ybr_full_becomes_rgb():
    data = dicom(noise(3), "YBR_FULL")
    assert np.abs(shown(data) - to_rgb(noise(3))).max() <= 1
    assert codes(data) == "dicom,ybr"


def test_ybr_full_422_becomes_rgb():
    ybr = noise(4, 6, 10)
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]
    made = dataset(ybr, "YBR_FULL_422")
    pairs = [ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]]
    made.PixelData = np.stack(pairs, axis=-1).tobytes()
    assert np.abs(shown(file_of(made)) - to_rgb(ybr)).max() <= 1


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_lossless_colour_is_as_it_was(syntax):
    photometric = "YBR_RCT" if syntax == JPEG2000Lossless else "RGB"
    data = compressed(dataset(noise(5, 40, 50), photometric), syntax)
    assert np.array_equal(shown(data), noise(5, 40, 50))
    assert codes(data) == ("dicom,ybr" if photometric == "YBR_RCT" else "dicom")


def test_ybr_ict_is_nearly_as_it_was():
    smooth = np.repeat(np.repeat(noise(6, 4, 4), 16, axis=0), 16, axis=1)
    data = compressed(dataset(smooth, "YBR_ICT"), JPEG2000, j2k_cr=[2])
    assert np.abs(shown(data).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_gives_its_colours(bits):
    tables = np.random.default_rng(7).integers(0, 2**bits, (3, 256))
    made = dataset(RAMP.astype(np.uint8), "PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), tables, strict=True):
        made.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        made.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.astype(f"<u{bits // 8}").tobytes())
    assert np.array_equal(shown(file_of(made)), (tables.T >> (bits - 8))[RAMP])
    assert codes(file_of(made)) == "dicom,palette"


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "YBR_PARTIAL_420", ""])
def test_other_photometric_interpretations_are_refused_in_header_and_picture(photometric):
    data = dicom(RAMP.astype(np.uint8), photometric)
    assert why_not(data).reason == "decode.mode"
    with pytest.raises(ReadError, match=r"decode\.mode"):
        header(data)


# Frames.

FRAMES = np.random.default_rng(8).integers(0, 4096, (5, 6, 7)).astype(np.uint16)


@pytest.mark.parametrize("compress", [False, True])
def test_each_frame_is_a_picture_with_its_own_range(compress):
    made = dataset(FRAMES, BitsStored=12)
    data = compressed(made, RLELossless) if compress else file_of(made)
    assert header(data).frames == 5
    for number, values in enumerate(FRAMES.astype(int)):
        assert np.array_equal(grey(data, number), spread(values, values.min(), values.max()))
    assert why_not(data, 5).reason == "decode.frames"


def group(**windows: Any) -> Dataset:
    """Functional group of one frame, or of all: rescale and window."""
    rescale = item(RescaleSlope=windows["slope"], RescaleIntercept=windows["intercept"], RescaleType="US")
    window = item(WindowCenter=windows["centre"], WindowWidth=windows["width"])
    return item(PixelValueTransformationSequence=[rescale], FrameVOILUTSequence=[window])


def test_each_frame_has_the_rescale_and_window_of_its_functional_group():
    own = [{"slope": n + 1, "intercept": -100 * n, "centre": 1000 + n, "width": 801} for n in range(5)]
    data = dicom(FRAMES, PerFrameFunctionalGroupsSequence=[group(**one) for one in own])
    for number, (one, values) in enumerate(zip(own, FRAMES.astype(float), strict=True)):
        expected = linear(values * one["slope"] + one["intercept"], one["centre"], 801)
        assert np.array_equal(grey(data, number), np.rint(expected))
    assert "voi-window" in codes(data)


def test_frames_share_the_functional_group_of_all():
    shared = group(slope=2, intercept=-50, centre=3000, width=4001)
    data = dicom(FRAMES, SharedFunctionalGroupsSequence=[shared])
    assert np.array_equal(grey(data, 4), np.rint(linear(FRAMES[4] * 2.0 - 50, 3000, 4001)))
    assert codes(data) == "dicom,rescale,voi-window"


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 40, "WindowWidth": 0},
        {"WindowCenter": 40, "WindowWidth": 0.5},
        {"WindowCenter": 40, "WindowWidth": -5, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "CUBIC"},
    ],
)
def test_window_that_the_standard_forbids_counts_as_none(window):
    data = dicom(CT_VALUES, **window)
    assert codes(data) == "dicom,range"
    assert np.array_equal(grey(data), grey(dicom(CT_VALUES)))


def test_intercept_without_slope_counts_and_slope_of_zero_is_refused():
    data = dicom((CT_VALUES + 1024).astype(np.uint16), RescaleIntercept=-1024)
    assert np.array_equal(grey(data, window=(40, 400)), np.rint(linear(CT_VALUES, 40, 400)))
    with pytest.raises(ReadError, match="slope of 0"):
        codes(dicom(CT_VALUES, RescaleSlope=0, RescaleIntercept=0))


def test_first_value_of_a_table_is_signed_where_values_are():
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    entries = [(n * 65535) // 4095 for n in range(4096)]
    made = {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}
    lut = table(entries, 0, 16)
    lut.LUTDescriptor = [4096, 65536 - 1024, 16]
    shown = grey(dicom(stored, VOILUTSequence=[lut], **made))
    assert np.array_equal(shown, np.rint(np.array(entries)[stored] * 255 / 65535))


def test_each_frame_is_told_by_its_own_codes():
    own = [group(slope=1, intercept=0, centre=1000, width=801) if n == 1 else Dataset() for n in range(5)]
    found = header(dicom(FRAMES, PerFrameFunctionalGroupsSequence=own))
    assert [text.split(",")[1] for text in found.of_frames] == ["range", "voi-window", "range", "range", "range"]
