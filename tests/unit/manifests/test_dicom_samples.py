"""pydicom's own sample files, against its stored values and the colours that its documentation and tests give."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from tests.unit.manifests.dicoms import SAMPLES, codes, grey, header, linear, shown, spread, why_not

RANGE = {
    "JPEG2000.dcm": (256, 1024, "dicom,range"),
    "JPEGLSNearLossless_16.dcm": (10, 50, "dicom,range"),
    "JPGExtended.dcm": (256, 1024, "dicom,range"),
}
WINDOW = {
    "MR_small.dcm": (64, 64, 600, 1600),
    "MR_small_RLE.dcm": (64, 64, 600, 1600),
    "MR_small_bigendian.dcm": (64, 64, 600, 1600),
    "MR_small_expb.dcm": (64, 64, 600, 1600),
    "MR_small_implicit.dcm": (64, 64, 600, 1600),
    "MR_small_jp2klossless.dcm": (64, 64, 600, 1600),
    "MR_small_jpeg_ls_lossless.dcm": (64, 64, 600, 1600),
    "MR_small_padded.dcm": (64, 64, 600, 1600),
    "examples_overlay.dcm": (484, 300, 450, 790),
    "J2K_pixelrep_mismatch.dcm": (512, 512, 40, 100),
}
"""Columns, rows, centre and width of the first window."""
COLOUR = {
    "ExplVR_BigEnd.dcm": (80, 60, 1, "dicom"),
    "SC_jpeg_no_color_transform.dcm": (256, 256, 1, "dicom"),
    "SC_jpeg_no_color_transform_2.dcm": (256, 256, 1, "dicom"),
    "SC_rgb_jpeg.dcm": (256, 256, 1, "dicom"),
    "SC_rgb_jpeg_app14_dcmd.dcm": (256, 256, 1, "dicom"),
    "SC_rgb_jpeg_dcmd.dcm": (256, 256, 1, "dicom"),
    "SC_rgb_small_odd.dcm": (3, 3, 1, "dicom"),
    "SC_rgb_small_odd_big_endian.dcm": (3, 3, 1, "dicom"),
    "SC_rgb_small_odd_jpeg.dcm": (3, 3, 1, "dicom,ybr"),
    "GDCMJ2K_TextGBR.dcm": (400, 400, 1, "dicom,ybr"),
    "examples_jpeg2k.dcm": (640, 480, 1, "dicom,ybr"),
    "examples_rgb_color.dcm": (320, 240, 1, "dicom"),
    "examples_ybr_color.dcm": (320, 240, 30, "dicom,ybr"),
}
"""Columns, rows, frames, codes."""
BANDS = {
    "SC_rgb_dcmtk_+eb+cr.dcm": 5,
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": 5,
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": 5,
    "SC_rgb_dcmtk_+eb+cy+np.dcm": 5,
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": 5,
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": 5,
    "SC_rgb_gdcm_KY.dcm": 3,
    "SC_rgb_jls_lossy_line.dcm": 4,
    "SC_rgb_jls_lossy_sample.dcm": 4,
    "SC_rgb_jpeg_dcmtk.dcm": 5,
    "SC_rgb_jpeg_gdcm.dcm": 0,
    "SC_rgb_jpeg_lossy_gdcm.dcm": 5,
    "SC_rgb_rle.dcm": 0,
    "SC_rgb_rle_16bit.dcm": 0,
    "SC_rgb_rle_16bit_2frame.dcm": 0,
    "SC_rgb_rle_2frame.dcm": 0,
    "SC_rgb_rle_32bit.dcm": 0,
    "SC_rgb_rle_32bit_2frame.dcm": 0,
    "SC_ybr_full_422_uncompressed.dcm": 5,
}
"""How far a level may be off, in files of ten bands of colour."""
COLOURS_OF_BANDS = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255)]
COLOURS_OF_BANDS += [(0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255)]
"""In rows 5, 15 .. 95."""


def content(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def stored(name: str, frame: int | None = None) -> NDArray[Any]:
    """Values as pydicom decodes them; it warns of oddities of some files."""
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(pydicom.pixels.pixel_array(pydicom.dcmread(SAMPLES / name), index=frame))


@pytest.mark.parametrize("name", RANGE)
def test_grey_without_a_window_is_the_range_of_its_stored_values(name):
    found, values = header(content(name)), stored(name).astype(np.float64)
    assert (found.width, found.height, found.transforms) == RANGE[name]
    assert np.array_equal(grey(content(name)), spread(values, values.min(), values.max()))


@pytest.mark.parametrize("name", WINDOW)
def test_grey_with_windows_is_shown_through_the_first(name):
    width, height, centre, wide = WINDOW[name]
    found = header(content(name))
    assert (found.width, found.height, found.transforms) == (width, height, "dicom,voi-window")
    assert np.array_equal(grey(content(name)), np.rint(linear(stored(name).astype(np.float64), centre, wide)))


def test_encodings_of_one_mr_give_one_picture():
    names = [name for name in WINDOW if name.startswith("MR_small")]
    assert len({hashlib.sha256(grey(content(name)).tobytes()).hexdigest() for name in names}) == 1
    assert len(names) == 8


def test_ct_is_in_hounsfield_units_with_black_padding():
    values = stored("CT_small.dcm").astype(np.float64) - 1024
    assert codes(content("CT_small.dcm")) == "dicom,rescale,range,padding-black"
    inside = values[values != -3024]
    assert np.array_equal(grey(content("CT_small.dcm")), spread(values, inside.min(), inside.max()))
    assert np.array_equal(grey(content("CT_small.dcm"), window=(40, 400)), np.rint(linear(values, 40, 400)))


def test_ct_of_jpeg_2000_has_its_own_window_and_black_padding():
    values = stored("693_J2KI.dcm").astype(np.float64)
    expected = np.where(values == -2000, 0, np.rint(linear(values - 1024, 40, 100)))
    assert codes(content("693_J2KI.dcm")) == "dicom,rescale,voi-window,padding-black"
    assert np.array_equal(grey(content("693_J2KI.dcm")), expected)


@pytest.mark.parametrize(("name", "size"), [("image_dfl.dcm", (512, 512)), ("JPEGLSNearLossless_08.dcm", (10, 45))])
def test_eight_bit_grey_is_as_stored(name, size):
    found = header(content(name))
    assert (found.width, found.height, found.transforms) == (*size, "dicom,depth-8")
    assert np.array_equal(grey(content(name)), stored(name))


@pytest.mark.parametrize("name", COLOUR)
def test_colour_has_the_size_and_pixels_of_pydicom(name):
    width, height, frames, transforms = COLOUR[name]
    found, last = header(content(name)), frames - 1
    assert (found.width, found.height, found.frames, found.transforms) == (width, height, frames, transforms)
    expected = stored(name, last)
    assert np.array_equal(shown(content(name), last), expected)
    assert expected.shape == (height, width, 3)


@pytest.mark.parametrize("name", BANDS)
def test_bands_have_their_documented_colours_in_every_frame(name):
    found = header(content(name))
    assert (found.width, found.height, found.frames) == (100, 100, 2 if "2frame" in name else 1)
    first = shown(content(name))[5::10, 50]
    assert np.abs(first.astype(int) - COLOURS_OF_BANDS).max() <= BANDS[name]
    if found.frames == 2:
        assert np.array_equal(shown(content(name), 1)[5::10, 50], 255 - first)


def test_palette_sample_has_the_colours_of_its_tables():
    made = pydicom.dcmread(SAMPLES / "examples_palette.dcm")
    keywords = [f"{name}PaletteColorLookupTableData" for name in ("Red", "Green", "Blue")]
    entries = [np.frombuffer(made[keyword].value, "<u2") for keyword in keywords]
    expected = np.stack([channel[made.pixel_array] >> 8 for channel in entries], axis=-1)
    assert header(content("examples_palette.dcm")).transforms == "dicom,palette"
    assert np.array_equal(shown(content("examples_palette.dcm")), expected)


SKIPPED = {
    "rtstruct.dcm": "RTSTRUCT",
    "rtplan.dcm": "RTPLAN without pixels",
    "rtdose.dcm": "RTDOSE",
    "rtdose_rle.dcm": "RTDOSE",
    "liver_1frame.dcm": "SEG",
    "test-SR.dcm": "SR without pixels",
    "waveform_ecg.dcm": "ECG without pixels",
    "dicomdirtests/DICOMDIR": "DICOMDIR",
    "dicomdirtests/DICOMDIR-bigEnd": "DICOMDIR",
}


@pytest.mark.parametrize("name", SKIPPED)
def test_what_shows_no_picture_is_skipped_by_name(name):
    assert header(content(name)).skipped == SKIPPED[name]
    assert why_not(content(name)).reason == "decode.mode"


REFUSED = {
    "MR_truncated.dcm": "decode.truncated",
    "JPEG2000-embedded-sequence-delimiter.dcm": "decode.unreadable",
    "JPEG-lossy.dcm": "decode.unreadable",
    "no_meta.dcm": "decode.unreadable",
    "priv_SQ.dcm": "decode.unreadable",
}


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_samples_are_refused(name):
    assert why_not(content(name)).reason == REFUSED[name]


def test_no_other_sample_of_pydicom_gives_a_picture():
    told = {*RANGE, *WINDOW, *COLOUR, *BANDS, "CT_small.dcm", "693_J2KI.dcm", "image_dfl.dcm"}
    told |= {"JPEGLSNearLossless_08.dcm", "examples_palette.dcm"}
    others = {path.name for path in SAMPLES.glob("*.dcm")} - told
    assert len(others) > 20
    for name in others:
        assert why_not(content(name)).reason in {"decode.mode", "decode.unreadable", "decode.truncated"}
