"""Masks at ingest and after: recorded by their bytes, followed by their bytes, and told when they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.drops import load_drops, load_locations, load_rows
from manifests.errors import ReadError
from manifests.fingerprint import digest_bytes
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.layout import DatasetPaths, Workdir
from manifests.readers import ImageSource
from manifests.types import ImageRow
from tests.unit.manifests.pictures import encode, put

MASK = "a/1_mask.png"


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return Workdir(tmp_path / "work").dataset("set")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number, name in enumerate(("a/1.png", "b/2.png")):
        put(folder, name, number)
    put(folder, MASK, drawn(3))
    return folder


def drawn(column: int) -> bytes:
    mask = np.zeros((6, 9), np.uint8)
    mask[2, column] = 1
    return encode(mask)


def take(paths: DatasetPaths, source: Path, **options: Any) -> IngestReport:
    return ingest(paths, source, IngestOptions(dataset="set", **options))


def row_at(paths: DatasetPaths, path: str) -> ImageRow:
    (found,) = (row for drop in load_drops(paths) for row in load_rows(paths, drop) if row.path == path)
    return found


def columns(paths: DatasetPaths, source: Path, path: str = "a/1.png") -> list[int]:
    """Where the mask of the image is true, read through the record of renamed files."""
    return np.nonzero(ImageSource(source, load_locations(paths)).read_mask(row_at(paths, path)))[1].tolist()


def test_digest_of_the_mask_is_recorded(paths, source):
    take(paths, source)
    assert row_at(paths, "a/1.png").mask_sha256 == digest_bytes(drawn(3))
    assert (row_at(paths, "b/2.png").mask_path, row_at(paths, "b/2.png").mask_sha256) == ("", "")


def test_mask_that_cannot_be_read_has_a_path_and_no_digest(paths, source):
    (source / MASK).unlink()
    (source / MASK).symlink_to("nowhere.png")
    take(paths, source)
    assert (row_at(paths, "a/1.png").mask_path, row_at(paths, "a/1.png").mask_sha256) == (MASK, "")
    assert take(paths, source).conflicts == ()


def test_unchanged_masks_are_no_conflict(paths, source):
    take(paths, source)
    (source / MASK).touch()
    assert take(paths, source).conflicts == ()
    assert load_locations(paths) == {}


def test_edited_mask_is_refused_and_told(paths, source):
    take(paths, source)
    before = row_at(paths, "a/1.png")
    put(source, MASK, drawn(4))
    with pytest.raises(ReadError, match=r"mask\.changed"):
        columns(paths, source)
    report = take(paths, source)
    assert report.conflicts == (f"{before.image_id}: mask changed in the source; its drop keeps the old one",)
    assert (report.drop, row_at(paths, "a/1.png"), load_locations(paths)) == (None, before, {})


def test_mask_that_became_unreadable_is_told(paths, source):
    take(paths, source)
    (source / MASK).unlink()
    (source / MASK).mkdir()
    assert [text.split(": ")[1] for text in take(paths, source).conflicts] == [
        "mask unreadable in the source; its drop keeps the old one"
    ]


def test_mask_supplied_later_is_told(paths, source):
    take(paths, source)
    put(source, "b/2_mask.png", drawn(5))
    report = take(paths, source)
    image_id = row_at(paths, "b/2.png").image_id
    assert report.conflicts == (f"{image_id}: mask added in the source; its drop keeps none",)
    assert (report.drop, row_at(paths, "b/2.png").mask_path, load_locations(paths)) == (None, "", {})


def test_mask_supplied_later_by_another_source_is_told(paths, source, tmp_path):
    take(paths, source)
    put(tmp_path / "other", "b/2.png", 1)
    put(tmp_path / "other", "b/2_mask.png", drawn(5))
    assert ["mask added" in text for text in take(paths, tmp_path / "other").conflicts] == [True]


def test_deleted_mask_is_told(paths, source):
    take(paths, source)
    (source / MASK).unlink()
    image_id = row_at(paths, "a/1.png").image_id
    assert take(paths, source).conflicts == (f"{image_id}: mask gone from the source; its drop still names it",)


def test_mask_that_another_source_or_csv_leaves_out_is_not_gone(paths, source, tmp_path):
    take(paths, source)
    put(tmp_path / "other", "a/1.png", 0)
    assert take(paths, tmp_path / "other").conflicts == ()
    labels = put(source, "labels.csv", b"file,label\na/1.png,a\n")
    assert take(paths, source, labels=labels).conflicts == ()


def test_renamed_mask_is_followed_by_its_bytes_until_it_is_back(paths, source):
    take(paths, source)
    (source / MASK).rename(source / "a/1_mask_7.png")
    for _ in range(2):
        assert take(paths, source).conflicts == ()
        assert columns(paths, source) == [3]
    (source / "a/1_mask_7.png").rename(source / MASK)
    assert take(paths, source).conflicts == ()
    assert load_locations(paths) == {}


def test_another_mask_under_a_new_name_is_not_followed(paths, source):
    take(paths, source)
    (source / MASK).unlink()
    put(source, "a/1_mask_7.png", drawn(8))
    assert "mask changed" in take(paths, source).conflicts[0]
    assert load_locations(paths) == {}


def test_equal_images_keep_a_mask_each_when_both_are_renamed(paths, source):
    put(source, "a/twin.png", 0)
    put(source, "a/twin_mask.png", drawn(6))
    take(paths, source)
    (source / MASK).rename(source / "a/1_mask_1.png")
    (source / "a/twin_mask.png").rename(source / "a/twin_mask_1.png")
    assert take(paths, source).conflicts == ()
    assert (columns(paths, source), columns(paths, source, "a/twin.png")) == ([3], [6])
