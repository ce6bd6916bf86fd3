"""NIfTI volumes -> slices: orientation by nibabel's canonical axes, values by arithmetic written out here."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator

import nibabel
import numpy as np
import pytest
from pydantic import ValidationError

from manifests import nifti_files, nifti_header
from manifests.errors import ReadError
from manifests.readers import probe
from manifests.reading import Reading
from manifests.volumes import turned_affine
from tests.unit.manifests.dicoms import linear, spread
from tests.unit.manifests.niftis import (
    PLANES,
    RAS,
    SAMPLES,
    header,
    looked_at,
    nifti,
    picture,
    why_not,
    zipped,
)
from tests.unit.manifests.pictures import put

VALUES = np.random.default_rng(1).integers(0, 256, (3, 4, 5)).astype(np.uint8)
VALUES[0, 0, 0], VALUES[2, 3, 4] = 0, 255
ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


# Orientation.


@pytest.mark.parametrize("plane", PLANES)
def test_every_orientation_of_a_volume_gives_the_same_pictures(plane):
    expected, seen = looked_at(VALUES, RAS, plane), set()
    for orientation in ORIENTATIONS:
        turned = nibabel.Nifti1Image(VALUES, RAS).as_reoriented(orientation)
        data = nifti(np.asarray(turned.dataobj), turned.affine)
        assert header(data, plane=plane).frames == len(expected)
        for number, one in enumerate(expected):
            assert np.array_equal(picture(data, number, plane=plane, window="range"), one)
        seen.add(header(data).transforms.split(",")[1])
    assert len(seen) == 48


def test_each_plane_shows_the_patient_as_radiologists_look_at_it():
    values = np.zeros((3, 4, 5), np.uint8)
    values[2, 3, 4] = 255  # right, front, head
    data = nifti(values)
    assert picture(data, 4, plane="axial", window="range")[0, 0] == 255
    assert picture(data, 0, plane="coronal", window="range")[0, 0] == 255
    assert picture(data, 0, plane="sagittal", window="range")[0, 0] == 255


def test_oblique_volume_is_sliced_along_its_nearest_axes():
    turn = np.deg2rad(20)
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    assert np.array_equal(picture(nifti(VALUES, oblique), 2, window="range"), looked_at(VALUES, RAS, "axial")[2])


@pytest.mark.parametrize("plane", PLANES)
def test_header_tells_the_size_that_slices_have(plane):
    found = header(nifti(VALUES), plane=plane)
    assert picture(nifti(VALUES), plane=plane).shape == (found.height, found.width)
    assert why_not(nifti(VALUES), found.frames, plane=plane).reason == "decode.frames"


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 0.0, 1.0, 1.0])])
def test_affine_that_drops_an_axis_is_refused(affine):
    rows = {name: affine[number] for number, name in enumerate(("srow_x", "srow_y", "srow_z"))}
    data = nifti(VALUES, sform_code=1, **rows)
    assert why_not(data).reason == "decode.unreadable"
    with pytest.raises(ReadError, match=r"decode\.unreadable"):
        header(data)


@pytest.mark.parametrize("changes", [[(0, 0.0)], [(0, 7.0)], [(3, 0.0)], [(1, -2.0)], [(0, 0.0), (1, -2.0), (2, 0.0)]])
@pytest.mark.parametrize("codes", [{"qform_code": 1, "sform_code": 0}, {"qform_code": 0, "sform_code": 0}])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_spacing_that_means_nothing_is_mended_as_nibabel_does(image_class, codes, changes):
    pixdim = np.array([1, 2, 2.5, 3, 0, 0, 0, 0])
    for place, number in changes:
        pixdim[place] = number
    data = nifti(VALUES, image_class=image_class, pixdim=pixdim, quatern_b=0.6, **codes)
    found = header(data)
    theirs = image_class.from_bytes(data)
    assert np.allclose(np.reshape(found.affine, (4, 4)), turned_affine(VALUES.shape, theirs.affine))
    assert np.array_equal(picture(data, 2, window="range"), looked_at(VALUES, theirs.affine, "axial")[2])


def test_mending_a_header_is_not_logged(caplog):
    header(nifti(VALUES, pixdim=[0, -2, 0, 3, 0, 0, 0, 0], qform_code=1, sform_code=0, magic=b"DOE"))
    assert caplog.text == ""


# Kinds of files.


@pytest.mark.parametrize("pack", [bytes, zipped])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_version_order_and_type_gives_the_same_slice(image_class, order, pack, kind):
    values = (VALUES // 2).astype(order + kind)
    data = pack(nifti(values, image_class=image_class, order=order))
    expected = spread(looked_at(VALUES // 2, RAS, "axial")[3].astype(float), 0, 127)
    assert np.array_equal(picture(data, 3, window="range"), expected)


def test_gzip_of_several_members_is_one_file():
    data = nifti(VALUES)
    joined = gzip.compress(data[:400]) + gzip.compress(data[400:])
    assert np.array_equal(picture(joined, 2), picture(data, 2))


def test_two_dimensions_are_one_slice():
    found = header(nifti(VALUES[:, :, 0]))
    assert (found.width, found.height, found.frames) == (3, 4, 1)


@pytest.mark.parametrize(
    ("name", "size", "frames", "codes"),
    [
        ("anatomical.nii", (33, 41), 25, "nifti,axes-LAS,axial,percentiles-0.5-99.5"),
        ("functional.nii", (17, 21), 3, "nifti,axes-LAS,axial,volume-0,rescale,cal-window"),
        ("example4d.nii.gz", (128, 96), 24, "nifti,axes-LAS,axial,volume-0,cal-window"),
        ("example_nifti2.nii.gz", (32, 20), 12, "nifti,axes-LAS,axial,volume-0,cal-window"),
        ("standard.nii.gz", (4, 5), 7, "nifti,axes-RAS,axial,percentiles-0.5-99.5"),
        ("reoriented_anat_moved.nii", (21, 26), 22, "nifti,axes-RAS,axial,percentiles-0.5-99.5"),
        ("resampled_anat_moved.nii", (17, 21), 3, "nifti,axes-LAS,axial,percentiles-0.5-99.5"),
    ],
)
def test_samples_of_nibabel_are_read(name, size, frames, codes):
    data, image = (SAMPLES / name).read_bytes(), nibabel.load(SAMPLES / name)
    found = header(data)
    assert ((found.width, found.height), found.frames, found.transforms) == (size, frames, codes)
    values = image.get_fdata() if image.ndim == 3 else image.get_fdata()[..., 0]
    limits = image.header["cal_min"], image.header["cal_max"]
    low, high = limits if "cal" in codes else np.nanpercentile(values, (0.5, 99.5))
    seen = np.nan_to_num(looked_at(values, image.affine, "axial")[frames // 2], nan=float(low))
    expected = spread(seen, float(low), float(high))
    assert np.abs(picture(data, frames // 2).astype(int) - expected).max() <= 1


# Values.


def stored(low: int = 0, high: int = 1000) -> np.ndarray:
    """16-bit values of a volume, between these two."""
    values = np.random.default_rng(2).integers(low, high, (6, 7, 8)).astype(np.int16)
    values[0, 0, 0], values[5, 6, 7] = low, high
    return values


def test_slope_and_intercept_come_before_the_window():
    data = nifti(stored(), scl_slope=2.0, scl_inter=-1024.0)
    expected = np.rint(np.clip((looked_at(stored(), RAS, "axial")[3] * 2.0 - 1024 + 160) / 400, 0, 1) * 255)
    assert np.array_equal(picture(data, 3, window=(40, 400)), expected)
    assert header(data, window=(40, 400)).transforms == "nifti,axes-RAS,axial,rescale,window-40-400"


def test_negative_slope_turns_grey_over():
    plain, turned = nifti(stored()), nifti(stored(), scl_slope=-1.0, scl_inter=0.0)
    assert np.array_equal(picture(turned, 3, window="range"), 255 - picture(plain, 3, window="range"))


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_slope_of_no_meaning_is_ignored(slope):
    data = nifti(stored(), scl_slope=slope, scl_inter=5.0)
    assert np.array_equal(picture(data, 3), picture(nifti(stored()), 3))
    assert "rescale" not in header(data).transforms


def test_intercept_that_is_no_number_is_refused():
    assert why_not(nifti(stored(), scl_slope=1.0, scl_inter=np.nan)).reason == "decode.unreadable"


def test_display_range_of_the_file_is_used_after_rescale():
    data = nifti(stored(), cal_min=-10.0, cal_max=500.0, scl_slope=0.5, scl_inter=-10.0)
    assert np.array_equal(picture(data, 3), spread(looked_at(stored(), RAS, "axial")[3] * 0.5 - 10, -10, 500))


@pytest.mark.parametrize("ends", [(5.0, 5.0), (9.0, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_display_range_of_no_meaning_gives_percentiles(ends):
    data = nifti(stored(), cal_min=ends[0], cal_max=ends[1])
    assert header(data).transforms.endswith("percentiles-0.5-99.5")
    assert np.array_equal(picture(data, 3), picture(nifti(stored()), 3))


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0, 100), (10, 60)])
def test_percentiles_are_of_the_whole_volume(percentiles):
    low, high = np.percentile(stored(), percentiles)
    expected = spread(looked_at(stored(), RAS, "axial")[5].astype(float), low, high)
    assert np.array_equal(picture(nifti(stored()), 5, percentiles=percentiles), expected)


def test_map_from_0_to_1_is_shown_in_a_window_of_width_1():
    values = (stored() / 1000).astype(np.float32)
    expected = spread(looked_at(values, RAS, "axial")[3].astype(float), 0, 1)
    assert np.array_equal(picture(nifti(values), 3, window=(0.5, 1.0)), expected)


@pytest.mark.parametrize("window", [(0.5, 0), (40, -1), (40, np.inf), (np.nan, 1)])
def test_window_without_a_width_is_refused(window):
    with pytest.raises(ValidationError, match="a width is above 0"):
        Reading(window=window)


def test_one_value_has_one_level_in_all_slices_of_a_volume():
    values = stored(0, 100)
    values[:, :, 4:] += 500
    values[1, 1, :] = 77
    data = nifti(values)
    levels = {picture(data, n, window="range")[5, 4] for n in range(8)}
    assert levels == {np.rint(77 / 600 * 255)}


def test_constant_volume_is_black():
    assert not picture(nifti(np.full((3, 3, 3), 7, np.int16))).any()


def test_nan_and_infinity_are_black_and_not_part_of_the_range():
    values = stored().astype(np.float32)
    values[2, 3, 3], values[3, 3, 3], values[4, 3, 3] = np.nan, np.inf, -np.inf
    found = picture(nifti(values), 3, window="range")
    assert found[3, [3, 2, 1]].tolist() == [0, 0, 0]
    rest = spread(looked_at(stored(), RAS, "axial")[3].astype(float), 0, 1000)
    rest[3, [3, 2, 1]] = 0
    assert np.array_equal(found, rest)


def test_volume_of_nothing_but_nan_is_refused():
    assert why_not(nifti(np.full((3, 3, 3), np.nan, np.float32))).reason == "decode.nonfinite"


# Several volumes, colour, other types.

SERIES = np.stack([stored(), stored() // 2, stored() // 4], axis=-1)


@pytest.mark.parametrize("pack", [bytes, zipped])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_of_several_volumes_is_chosen(number, pack):
    data = pack(nifti(SERIES))
    assert np.array_equal(picture(data, 3, volume=number), picture(nifti(SERIES[..., number]), 3))
    assert f"volume-{number}" in header(data, volume=number).transforms


def test_volume_that_is_not_there_is_refused():
    assert why_not(nifti(SERIES), volume=3).reason == "decode.frames"
    assert why_not(nifti(stored()), volume=1).reason == "decode.frames"


def test_colour_is_as_stored():
    rgb = np.random.default_rng(3).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    typed = np.ascontiguousarray(rgb).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    found = picture(nifti(typed), 2, window="range")
    assert np.array_equal(found, rgb[::-1, ::-1, 2].swapaxes(0, 1))
    assert header(nifti(typed)).transforms == "nifti,axes-RAS,axial"


@pytest.mark.parametrize("kind", ["c8", "c16"])
def test_complex_voxels_are_refused(kind):
    assert why_not(nifti(VALUES.astype(kind))).reason == "decode.mode"


# Damage and bombs.


@pytest.mark.parametrize("pack", [bytes, zipped])
def test_truncated_volume_is_told(pack):
    whole = nifti(VALUES)
    assert why_not(pack(whole[:-1])).reason == "decode.truncated"
    assert why_not(pack(whole[:347])).reason == "decode.truncated"
    assert why_not(zipped(whole)[:-30]).reason == "decode.truncated"
    assert why_not(pack(b"")).reason == "decode.empty"


@pytest.mark.parametrize("position", [3000, 5000, 7000])
def test_flipped_bit_of_a_compressed_volume_is_found_by_its_checksum(position):
    values = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    data = bytearray(zipped(nifti(values)))
    data[position] ^= 1
    assert why_not(bytes(data)).reason == "decode.unreadable"


@pytest.mark.parametrize(
    "dimensions", [(3, 32767, 32767, 32767), (3, 1, 1, 0), (3, -4, 5, 6), (9, 3, 4, 5), (0, 3, 4, 5)]
)
def test_absurd_dimensions_are_refused_before_anything_is_reserved(dimensions):
    shape = [*dimensions, *[1] * (8 - len(dimensions))]
    assert why_not(nifti(VALUES, dim=shape)).reason in {"decode.size", "decode.too_large"}


def test_dimensions_of_nifti_2_whose_product_wraps_are_refused():
    shape = [3, 2**31, 2**31, 4, 1, 1, 1, 1]
    data = nifti(VALUES, image_class=nibabel.Nifti2Image, dim=shape)
    assert why_not(data).reason in {"decode.size", "decode.too_large", "decode.unreadable"}


def test_billions_of_slices_make_no_rows(tmp_path):
    data = nifti(VALUES, image_class=nibabel.Nifti2Image, dim=[3, 1, 1, 2**40, 1, 1, 1, 1])
    with pytest.raises(ReadError, match=r"decode\.too_large"):
        probe(put(tmp_path, "a.nii", data))


def test_offset_beyond_the_file_or_before_it_is_refused_or_ignored():
    assert why_not(nifti(VALUES, vox_offset=1e6)).reason == "decode.truncated"
    assert why_not(nifti(VALUES, vox_offset=1e30)).reason in {"decode.too_large", "decode.truncated"}
    assert np.array_equal(picture(nifti(VALUES, vox_offset=-5.0), 1), picture(nifti(VALUES), 1))


class Inflated:
    """Counts the bytes that are inflated."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.n_bytes = 0
        inflating = nifti_header._inflating

        def counted(data: bytes, most: int) -> Iterator[bytes]:
            for part in inflating(data, most):
                self.n_bytes += len(part)
                yield part

        patch.setattr(nifti_header, "_inflating", counted)


def test_compressed_file_is_inflated_no_further_than_its_volumes(monkeypatch):
    packer, inflated = zlib.compressobj(wbits=31), Inflated(monkeypatch)
    bomb = packer.compress(nifti(VALUES)) + packer.compress(bytes(50_000_000)) + packer.flush()
    assert np.array_equal(picture(bomb, 1), picture(nifti(VALUES), 1))
    assert inflated.n_bytes < 2000


@pytest.mark.parametrize("members", [1, 2])
def test_damage_behind_the_volume_that_is_read_is_found(members):
    whole = nifti(np.random.default_rng(0).integers(0, 255, (20, 20, 20, 9)).astype(np.uint8))
    data = zipped(whole) if members == 1 else zipped(whole[:50000]) + zipped(whole[50000:])
    picture(data, 3)
    assert why_not(data[:-8] + bytes(4) + data[-4:], 3).reason == "decode.unreadable"
    assert why_not(data[:-200], 3).reason == "decode.truncated"
    assert why_not(zipped(whole[:-1]), 3).reason == why_not(whole[:-1], 3).reason == "decode.truncated"


@pytest.mark.parametrize("part", [2, 3, 64, 1 << 16])
def test_file_of_many_members_is_the_same_however_they_are_read(monkeypatch, part):
    data = nifti(VALUES)
    members = [b"", data[:100], data[100:352], b"", data[352:], b""]
    monkeypatch.setattr(nifti_header, "PART", part)
    assert np.array_equal(picture(b"".join(map(zipped, members)), 2), picture(data, 2))


def test_file_of_absurdly_many_members_is_refused(monkeypatch):
    monkeypatch.setattr(nifti_header, "MOST_MEMBERS", 9)
    assert why_not(zipped(b"") * 9 + zipped(nifti(VALUES))).reason == "decode.too_large"
    picture(zipped(b"") * 8 + zipped(nifti(VALUES)))


def test_rest_of_a_file_is_inflated_once_whichever_volumes_are_read(monkeypatch):
    data, inflated, one = zipped(nifti(SERIES)), Inflated(monkeypatch), SERIES.nbytes // 3
    monkeypatch.setattr(nifti_files, "_SOUND", set())
    for number in (0, 1, 0, 1):
        picture(data, 3, volume=number)
    assert inflated.n_bytes == 4 * 541 + (352 + 3 * one) + 2 * (353 + 2 * one) + (353 + one)


def test_what_is_inflated_to_find_damage_has_a_limit(monkeypatch):
    data = zipped(nifti(np.zeros((20, 20, 20, 50), np.uint8)))
    monkeypatch.setattr(nifti_files, "MOST_BYTES", 10_000)
    inflated = Inflated(monkeypatch)
    picture(data)
    assert inflated.n_bytes < 12_000


def test_volume_beyond_the_limit_is_refused_before_it_is_inflated(monkeypatch):
    monkeypatch.setattr(nifti_files, "MOST_BYTES", 400)
    assert why_not(zipped(nifti(VALUES))).reason == "decode.too_large"


def test_slices_of_a_compressed_volume_inflate_it_once(monkeypatch):
    data, inflated = zipped(nifti(stored())), Inflated(monkeypatch)
    for number in range(8):
        picture(data, number)
    assert inflated.n_bytes == 541 + 352 + stored().nbytes


def test_no_error_says_a_text_of_the_file():
    data = nifti(VALUES, descrip=b"DOE^JANE", aux_file=b"DOE^JANE", magic=b"DOE", datatype=77)
    error = why_not(data)
    assert "DOE" not in f"{error} {error.detail}"


def test_linear_window_of_dicom_differs_from_that_of_volumes_by_its_half_steps_alone():
    expected = linear(looked_at(stored(), RAS, "axial")[3].astype(float), 500.5, 1001)
    assert np.abs(picture(nifti(stored()), 3, window=(500, 1000)) - expected).max() <= 1
