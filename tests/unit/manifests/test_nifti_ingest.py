"""NIfTI volumes in a source: slices as rows, masks that are volumes, and a reading that all drops share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from manifests.drops import load_drops, load_rows
from manifests.errors import ConfigError, InventoryError, ReadError
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.layout import DatasetPaths
from manifests.readers import ImageSource
from manifests.reading import Reading
from manifests.types import ImageRow
from pipeline.config import load_config
from pipeline.workspace import Workspace
from tests.unit.manifests.niftis import RAS, looked_at, nifti, picture, zipped
from tests.unit.manifests.pictures import encode, put

SHAPE = (6, 7, 5)


def volume(seed: int) -> bytes:
    return zipped(nifti(np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(np.int16)))


def ingested(source: Path, reading: Reading | None = None, **options: Any) -> IngestReport:
    return ingest(DatasetPaths(source.parent / "work"), source, IngestOptions(dataset="d", reading=reading, **options))


def rows(source: Path, drop: int = 0) -> tuple[ImageRow, ...]:
    paths = DatasetPaths(source.parent / "work")
    return load_rows(paths, load_drops(paths)[drop])


# Rows.


def test_each_slice_is_a_row_in_order_with_an_id_of_its_own(source):
    put(source, "a/1.nii.gz", volume(1))
    put(source, "b/2.nii.gz", volume(2))
    assert ingested(source).new == 10
    found = rows(source)
    assert len({row.image_id for row in found}) == 10
    assert [row.frame for row in found] == [0, 1, 2, 3, 4] * 2
    assert {(row.path, row.label) for row in found} == {("a/1.nii.gz", "a"), ("b/2.nii.gz", "b")}
    assert {(row.width, row.height) for row in found} == {(6, 7)}


def test_rows_are_read_as_ingest_was_told(source):
    data, reading = volume(1), Reading(plane="sagittal", window=(500, 300), every=2)
    put(source, "a/1.nii.gz", data)
    ingested(source, reading)
    found = rows(source)
    assert [row.frame for row in found] == [0, 2, 4]
    for row in found:
        rgb = ImageSource(source, reading=reading).read(row)
        assert np.array_equal(rgb[..., 0], picture(data, row.frame, plane="sagittal", window=(500, 300)))


def test_slices_of_a_volume_are_one_group_and_volumes_are_not(source):
    put(source, "a/1.nii.gz", volume(1))
    put(source, "a/2.nii", nifti(np.zeros(SHAPE, np.int16)))
    ingested(source)
    groups = {(row.path, row.group_id) for row in rows(source)}
    assert len(groups) == 2
    assert len({group for _, group in groups}) == 2


def test_second_ingest_finds_nothing_new(source):
    put(source, "a/1.nii.gz", volume(1))
    ingested(source)
    report = ingested(source)
    assert (report.drop, report.new, report.unchanged, report.duplicates) == (None, 0, 5, 0)


def test_renamed_volume_is_found_slice_for_slice(source):
    file = put(source, "a/1.nii.gz", volume(1))
    ingested(source)
    file.rename(file.with_name("moved.nii.gz"))
    report = ingested(source)
    assert (report.new, report.renamed, report.vanished) == (0, 5, 0)


def test_unreadable_volume_is_one_row_with_its_reason(source):
    put(source, "a/1.nii.gz", volume(1))
    put(source, "a/2.nii.gz", b"text")
    ingested(source)
    broken = [row for row in rows(source) if row.path == "a/2.nii.gz"]
    assert [(row.width, row.frame) for row in broken] == [(0, 0)]


def test_other_window_for_the_second_drop_is_refused_with_the_way_out(source):
    put(source, "a/1.nii.gz", volume(1))
    ingested(source, Reading(window=(40, 400)))
    put(source, "a/2.nii.gz", volume(3))
    with pytest.raises(
        InventoryError, match=r"read otherwise than the earlier ones: reading\.window = .*another data set"
    ):
        ingested(source, Reading(window=(50, 400)))
    assert ingested(source).new == 5
    assert "window-40-400" in rows(source, 1)[0].transforms


def test_run_that_asks_for_another_reading_is_refused(source):
    put(source, "a/1.nii.gz", volume(1))
    ingested(source, Reading(window=(40, 400)))
    paths = DatasetPaths(source.parent / "work")
    with pytest.raises(ConfigError, match=r"another reading .*: reading\.every = 2, not 1.*another data set"):
        Workspace(paths, load_config(overrides=("reading.every=2",))).check_reading()
    same = Workspace(paths, load_config(overrides=("reading.window=[40,400]",)))
    assert same.image_source("drop-001").reading == Reading(window=(40, 400))
    assert Workspace(paths, load_config()).drops[0].reading.window == (40, 400)


# Masks.


def labelled(affine: np.ndarray = RAS) -> tuple[np.ndarray, bytes]:
    """Labels 0 to 2 of a volume, and their file."""
    values = np.random.default_rng(9).integers(0, 3, SHAPE).astype(np.int16)
    return values, nifti(values, affine)


def masks(source: Path, mask: bytes, name: str = "1_mask.nii", **reading: Any) -> list[np.ndarray]:
    """The mask of every row of a volume beside which it lies."""
    put(source, "a/1.nii.gz", volume(1))
    put(source, f"a/{name}", mask)
    ingested(source, Reading(**reading))
    read = ImageSource(source, reading=Reading(**reading)).read_mask
    return [read(row) for row in rows(source)]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("window", ["file", (40, 400)])
def test_mask_of_a_volume_is_where_its_labels_are_not_zero(source, plane, window):
    values, data = labelled()
    expected = looked_at(values, RAS, plane) != 0
    found = masks(source, data, plane=plane, window=window)
    assert np.array_equal(np.stack(found), expected)


def test_compressed_mask_that_lies_the_other_way_fits_its_volume(source):
    values, _ = labelled()
    turned = nibabel.Nifti1Image(values, RAS).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    data = zipped(nifti(np.asarray(turned.dataobj), turned.affine))
    assert np.array_equal(np.stack(masks(source, data, "1_mask.nii.gz")), looked_at(values, RAS, "axial") != 0)


def test_nan_is_outside_a_mask(source):
    values = np.ones(SHAPE, np.float32)
    values[0] = np.nan
    assert np.array_equal(masks(source, nifti(values))[0], looked_at(values, RAS, "axial")[0] == 1)


def refused_mask(source: Path, mask: bytes, name: str = "1_mask.nii") -> str:
    with pytest.raises(ReadError) as caught:
        masks(source, mask, name)
    return caught.value.reason


def test_one_picture_is_no_mask_of_a_slice(source):
    assert refused_mask(source, encode(np.ones((7, 6), np.uint8)), "1_mask.png") == "mask.frames"


def test_mask_of_another_size_is_refused(source):
    assert refused_mask(source, nifti(np.ones((6, 8, 5), np.int16))) == "mask.size"


def test_mask_of_fewer_slices_is_refused(source):
    assert refused_mask(source, nifti(np.ones((6, 7, 4), np.int16))) == "mask.frames"


def test_mask_of_another_number_of_slices_is_refused(source):
    values = np.ones((*SHAPE[:2], SHAPE[2] + 4), np.int16)
    assert refused_mask(source, nifti(values)) == "mask.frames"


@pytest.mark.parametrize("change", ["origin", "flip", "spacing"])
def test_mask_that_lies_elsewhere_is_refused(source, change):
    affine = RAS.copy()
    if change == "origin":
        affine[2, 3] = 9
    elif change == "flip":
        affine[0, 0] = -1
    else:
        affine[1, 1] = 2
    assert refused_mask(source, nifti(np.ones(SHAPE, np.int16), affine)) == "mask.geometry"


def test_volume_is_no_mask_of_six_single_pictures(source):
    put(source, "a/1.png", 1)
    put(source, "m.nii", nifti(np.ones((6, 6, 6), np.int16)))
    labels = put(source.parent, "labels.csv", b"file,label,mask\na/1.png,x,m.nii\n")
    ingest(DatasetPaths(source.parent / "work"), source, IngestOptions(dataset="d", labels=labels))
    with pytest.raises(ReadError, match=r"mask\.frames"):
        ImageSource(source).read_mask(rows(source)[0])
