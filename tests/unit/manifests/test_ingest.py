"""What a second look at a source adds, follows and refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.drops import dataset_classes, load_drops, load_locations, load_rows
from manifests.errors import InventoryError
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.layout import DatasetPaths, Workdir
from manifests.readers import ImageSource
from tests.unit.manifests.pictures import encode, put


@pytest.fixture(autouse=True)
def salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(tmp_path / "salt"))


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return Workdir(tmp_path / "work").dataset("set")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number, name in enumerate(("b/0.png", "b/1.png", "a/2.png", "a/3.png")):
        put(folder, name, number)
    return folder


def take(paths: DatasetPaths, source: Path, **options: Any) -> IngestReport:
    return ingest(paths, source, IngestOptions(dataset="set", **options))


def reads(paths: DatasetPaths, source: Path) -> int:
    """How many rows of all drops can be read, pixel for pixel or not at all."""
    reader = ImageSource(source, load_locations(paths))
    return sum(reader.read(row).size > 0 for drop in load_drops(paths) for row in load_rows(paths, drop))


def tree(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_first_ingest_makes_a_drop_of_everything(paths, source):
    report = take(paths, source, chunk_items=3)
    (drop,) = load_drops(paths)
    assert report.drop == drop
    assert (drop.drop_id, drop.n_items, drop.classes, drop.previous) == ("drop-001", 4, ("a", "b"), ())
    assert (report.new, report.unchanged, report.duplicates, report.ignored) == (4, 0, 0, 0)
    assert [len(chunk) for chunk in drop.chunks()] == [3, 1]
    assert drop.source_root == str(source.resolve())


def test_second_ingest_of_the_same_source_changes_nothing(paths, source):
    take(paths, source)
    before = tree(paths.root)
    report = take(paths, source)
    assert (report.drop, report.audit, report.new, report.unchanged) == (None, None, 0, 4)
    assert tree(paths.root) == before


def test_touched_file_is_no_change(paths, source):
    take(paths, source)
    os.utime(source / "a/2.png", (1, 1))
    report = take(paths, source)
    assert (report.drop, report.unchanged, report.renamed) == (None, 4, 0)


def test_only_new_images_become_the_next_drop(paths, source):
    first = take(paths, source).drop
    put(source, "c/9.png", 9)
    report = take(paths, source)
    assert report.drop is not None
    assert first is not None
    assert (report.drop.drop_id, report.drop.previous, report.new) == ("drop-002", ("drop-001",), 1)
    assert [row.path for row in load_rows(paths, report.drop)] == ["c/9.png"]
    assert load_drops(paths)[0] == first


def test_earlier_classes_keep_their_index(paths, source):
    take(paths, source)
    put(source, "C/8.png", 8)
    put(source, "aa/9.png", 9)
    take(paths, source)
    assert dataset_classes(load_drops(paths)) == ("a", "b", "C", "aa")


def test_image_without_a_label_makes_no_class(paths, source):
    put(source, "unlabelled.png", 9)
    report = take(paths, source)
    assert report.new == 5
    assert dataset_classes(load_drops(paths)) == ("a", "b")


def test_renamed_file_is_followed_not_ingested_again(paths, source):
    take(paths, source)
    (source / "a/2.png").rename(source / "a/new name.png")
    report = take(paths, source)
    assert (report.drop, report.renamed, report.vanished, report.unchanged) == (None, 1, 0, 3)
    assert report.duplicates == 0
    assert list(load_locations(paths).values()) == ["a/new name.png"]
    assert reads(paths, source) == 4


def test_rename_is_told_once_and_forgotten_when_undone(paths, source):
    take(paths, source)
    (source / "a/2.png").rename(source / "a/new.png")
    take(paths, source)
    again = take(paths, source)
    assert (again.renamed, again.unchanged, again.duplicates) == (0, 4, 0)
    (source / "a/new.png").rename(source / "a/2.png")
    back = take(paths, source)
    assert (back.renamed, back.unchanged, load_locations(paths)) == (0, 4, {})


def test_two_files_that_swapped_names_are_both_followed(paths, source):
    take(paths, source)
    (source / "a/2.png").rename(source / "a/x.png")
    (source / "a/3.png").rename(source / "a/2.png")
    (source / "a/x.png").rename(source / "a/3.png")
    assert take(paths, source).renamed == 2
    assert reads(paths, source) == 4


def test_renamed_twin_is_read_from_any_place_with_its_bytes(paths, source):
    put(source, "a/twin.png", 2)
    take(paths, source)
    (source / "a/twin.png").unlink()
    report = take(paths, source)
    assert (report.vanished, report.renamed) == (0, 0)
    assert reads(paths, source) == 5


def test_mask_is_followed_with_its_image(paths, source):
    mask = np.zeros((6, 9), np.uint8)
    mask[2, 3] = 1
    put(source, "a/2_mask.png", encode(mask))
    take(paths, source)
    (source / "a").rename(source / "a2")
    assert take(paths, source).renamed == 2
    (row,) = (r for r in load_rows(paths, load_drops(paths)[0]) if r.mask_path)
    assert np.array_equal(ImageSource(source, load_locations(paths)).read_mask(row), mask > 0)
    (source / "a2").rename(source / "a")
    take(paths, source)
    assert load_locations(paths) == {}


def test_vanished_file_is_counted_and_stays_in_its_drop(paths, source):
    take(paths, source)
    (source / "a/2.png").unlink()
    report = take(paths, source)
    assert (report.drop, report.vanished, report.unchanged) == (None, 1, 3)
    assert load_drops(paths)[0].n_items == 4


def test_copy_of_a_known_image_makes_no_row(paths, source):
    take(paths, source)
    put(source, "a/copy.png", 2)
    report = take(paths, source)
    assert (report.drop, report.duplicates, report.unchanged, report.conflicts) == (None, 1, 4, ())


def test_duplicates_in_one_drop_are_rows_that_name_the_first(paths, source):
    put(source, "a/copy.png", 2)
    report = take(paths, source)
    assert (report.new, report.duplicates) == (5, 1)
    assert report.audit is not None
    assert len(report.audit.duplicates_within_split) == 1


def test_other_label_in_the_source_is_a_conflict_and_changes_nothing(paths, source):
    drop = take(paths, source).drop
    (source / "a/2.png").rename(source / "b/2.png")
    report = take(paths, source)
    (conflict,) = report.conflicts
    assert conflict.endswith("ingested as none/a, now none/b")
    assert report.drop is None
    assert drop is not None
    assert {r.label for r in load_rows(paths, drop) if r.path == "a/2.png"} == {"a"}


def test_other_source_with_known_images_neither_renames_nor_vanishes(paths, source, tmp_path):
    take(paths, source)
    put(tmp_path / "other", "a/2.png", 2)
    put(tmp_path / "other", "a/7.png", 7)
    report = take(paths, tmp_path / "other")
    assert (report.new, report.unchanged, report.renamed, report.vanished) == (1, 1, 0, 0)
    assert load_locations(paths) == {}


def test_moved_source_is_known_altogether(paths, source, tmp_path):
    take(paths, source)
    source.rename(tmp_path / "moved")
    report = take(paths, tmp_path / "moved")
    assert (report.drop, report.unchanged, report.vanished) == (None, 4, 0)


def test_csv_that_leaves_known_files_out_does_not_lose_them(paths, source):
    take(paths, source)
    (source / "a/2.png").rename(source / "a/x.png")
    take(paths, source)
    labels = put(source, "new.csv", b"file,label\nb/0.png,b\n")
    report = take(paths, source, labels=labels)
    assert (report.vanished, report.renamed, report.unchanged) == (0, 0, 1)
    assert reads(paths, source) == 4


def test_unreadable_file_is_a_row_once_and_the_repaired_one_is_new(paths, source, monkeypatch):
    (source / "a/link.png").symlink_to(source / "later.bin")
    first = take(paths, source)
    assert first.audit is not None
    assert list(first.audit.unreadable.values()) == ["file.missing"]
    assert take(paths, source).drop is None
    put(source, "later.bin", 50)
    report = take(paths, source)
    assert (report.new, report.vanished) == (1, 0)


def test_extra_masks_are_told_by_image(paths, source):
    for name in ("a/2_mask.png", "a/2_mask_1.png", "a/2_mask_2.png"):
        put(source, name, 70)
    audit = take(paths, source).audit
    assert audit is not None
    assert list(audit.extra_masks.values()) == [2]


def test_default_name_passes_over_names_in_use(paths, source):
    take(paths, source, drop_id="drop-002")
    put(source, "a/9.png", 9)
    report = take(paths, source)
    assert report.drop is not None
    assert report.drop.drop_id == "drop-003"


def test_source_is_only_read(paths, source):
    before = tree(source)
    take(paths, source)
    assert tree(source) == before


def test_folders_are_no_labels_where_they_mean_nothing(paths, source):
    report = take(paths, source, labelled=False)
    (drop,) = load_drops(paths)
    assert drop.classes == ()
    assert {(row.label, row.split.value) for row in load_rows(paths, drop)} == {("", "none")}
    assert report.audit.label_conflicts == ()


def test_report_names_every_file_of_the_source_known_ones_too(paths, source):
    first = take(paths, source).files
    put(source, "a/4.png", 4)
    again = take(paths, source).files
    assert sorted(again) == ["a/2.png", "a/3.png", "a/4.png", "b/0.png", "b/1.png"]
    assert {path: again[path] for path in first} == first


def test_source_that_is_an_export_is_refused(paths, source):
    put(source, "export.json", b'{"schema": "medfocus.export"}')
    with pytest.raises(InventoryError, match="is an export of MedFocus, and its pictures are results"):
        take(paths, source)


@pytest.mark.parametrize(
    ("record", "new"),
    [('{"schema": "medfocus.export"}', 0), ('{"schema": "another"}', 1), ("[]", 1), ("{", 1)],
)
def test_export_in_a_source_is_passed_over_and_another_folder_is_not(paths, source, record, new):
    take(paths, source)
    put(source, "b/out/9.png", 9)
    put(source, "b/out/export.json", record.encode())
    report = take(paths, source)
    assert (report.new, report.ignored) == (new, 1)
