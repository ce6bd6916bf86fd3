"""What ingest refuses, and what it keeps to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests.drops import load_drops, load_locations, load_rows
from manifests.errors import InventoryError, ReadError, UsageError
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.layout import DatasetPaths, Workdir
from manifests.readers import ImageSource
from tests.unit.manifests.pictures import encode, noise, put


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


def tree(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_changed_pixels_are_a_new_image_and_the_old_row_is_refused(paths, source):
    take(paths, source)
    pixels = noise(2)
    pixels[0, 0, 0] ^= 1
    put(source, "a/2.png", encode(pixels))
    report = take(paths, source)
    assert (report.new, report.vanished, report.renamed) == (1, 1, 0)
    (old,) = (r for r in load_rows(paths, load_drops(paths)[0]) if r.path == "a/2.png")
    with pytest.raises(ReadError, match="changed"):
        ImageSource(source, load_locations(paths)).read(old)


def test_duplicates_across_splits_are_told_and_refused_when_strict(paths, tmp_path):
    source = tmp_path / "split"
    for name, seed in (("train/a/1.png", 1), ("train/a/2.png", 2), ("test/a/1.png", 1)):
        put(source, name, seed)
    with pytest.raises(InventoryError, match="1 validation or test images"):
        take(paths, source, strict=True)
    assert not paths.root.exists()
    report = take(paths, source)
    assert (len(report.leaks), report.leaking, report.leaking_earlier) == (1, 1, 0)
    assert report.audit is not None
    assert report.audit.leaks == report.leaks


def test_one_patient_in_two_splits_of_two_drops_is_refused_when_strict(paths, source):
    first = put(source, "1.csv", b"file,split,group\na/2.png,train,DOE\n")
    second = put(source, "2.csv", b"file,split,group\na/2.png,train,DOE\na/3.png,test,DOE\n")
    take(paths, source, labels=first)
    with pytest.raises(InventoryError, match="patient"):
        take(paths, source, labels=second, strict=True)
    assert take(paths, source, labels=second).new == 1


def test_another_salt_is_refused_because_patients_could_not_be_matched(paths, source, tmp_path, monkeypatch):
    take(paths, source, labels=put(source, "1.csv", b"file,group\na/2.png,DOE\n"))
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(tmp_path / "other"))
    with pytest.raises(InventoryError, match=r"another salt.*MEDFOCUS_SALT_FILE"):
        take(paths, source, labels=put(source, "2.csv", b"file,group\na/3.png,DOE\n"))


def test_group_names_are_stored_nowhere(paths, source):
    text = b"file,group,label\na/2.png,DOE^JANE,x\n"
    take(paths, source, labels=put(source, "1.csv", text))
    assert not any(b"DOE" in content for content in tree(paths.root).values())


def test_audit_on_disk_holds_no_path(paths, source):
    put(source, "a/DOE^JANE_mask.png", 77)
    take(paths, source)
    text = (paths.drop("drop-001") / "audit.json").read_text()
    assert "DOE" not in text
    assert str(source) not in text
    assert '"masks_as_images":["' in text.replace(" ", "").replace("\n", "")


def test_drop_may_be_named_and_a_name_is_used_once(paths, source):
    assert take(paths, source, drop_id="2026-11").drop is not None
    put(source, "a/9.png", 9)
    with pytest.raises(InventoryError, match="'2026-11' exists"):
        take(paths, source, drop_id="2026-11")
    assert [drop.drop_id for drop in load_drops(paths)] == ["2026-11"]


@pytest.mark.parametrize("options", [{"drop_id": "../x"}, {"drop_id": "a/b"}, {"chunk_items": 0}])
def test_unusable_options_are_refused_before_anything_is_read(paths, source, options):
    with pytest.raises(UsageError):
        take(paths, source, **options)
    assert not paths.root.exists()


def test_images_that_the_csv_leaves_out_and_images_without_a_patient_are_counted(paths, source):
    labels = put(source, "1.csv", b"file,label,group\na/2.png,a,DOE\na/3.png,a,\n")
    report = take(paths, source, labels=labels)
    assert (report.new, report.unnamed, report.without_patient) == (2, 2, 1)


def test_label_that_a_program_wrote_for_a_missing_value_is_refused_by_its_line(paths, source):
    for word in ("nan", "NaN"):
        with pytest.raises(InventoryError, match="line 3: the label is"):
            take(paths, source, labels=put(source, "1.csv", f"file,label\na/2.png,a\na/3.png,{word}\n".encode()))
    assert not paths.root.exists()
