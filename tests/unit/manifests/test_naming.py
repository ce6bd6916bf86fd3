"""What an id, a path or one frame of a file means to `explain` and `withdraw`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manifests.drops import load_drops, load_locations, load_rows
from manifests.errors import InventoryError, UsageError
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.naming import find_image
from manifests.types import ImageRow
from manifests.withdrawals import withdraw
from pipeline.config import load_config
from pipeline.explain import explain
from pipeline.workspace import Workspace
from tests.unit.manifests.niftis import nifti, zipped
from tests.unit.manifests.pictures import put

PATIENT = "p2"


@pytest.fixture(autouse=True)
def salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(tmp_path / "salt"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two pictures, and a volume of four slices that was renamed since its ingest."""
    folder = tmp_path / "source"
    put(folder, "x/1.png", 1)
    put(folder, "y/2.png", 2)
    values = np.random.default_rng(0).integers(0, 1000, (6, 7, 4)).astype(np.int16)
    old = put(folder, "x/old.nii.gz", zipped(nifti(values)))
    taken(folder)
    old.rename(old.with_name("moved.nii.gz"))
    taken(folder)
    return folder


def paths_of(source: Path) -> DatasetPaths:
    return DatasetPaths(source.parent / "work")


def taken(source: Path, labels: Path | None = None) -> None:
    ingest(paths_of(source), source, IngestOptions(dataset="d", labels=labels))


def rows_of(source: Path) -> list[ImageRow]:
    return [row for drop in load_drops(paths_of(source)) for row in load_rows(paths_of(source), drop)]


def found(source: Path, what: str) -> str:
    return find_image(rows_of(source), load_locations(paths_of(source)), what)


def slice_of(source: Path, frame: int) -> str:
    return next(row.image_id for row in rows_of(source) if row.path == "x/old.nii.gz" and row.frame == frame)


@pytest.mark.parametrize("name", ["x/old.nii.gz#3", "x/moved.nii.gz#3"])
def test_slice_is_found_by_its_old_and_its_new_path(source: Path, name: str) -> None:
    assert found(source, name) == slice_of(source, 3)


def test_explain_knows_the_new_path_of_a_renamed_file(source: Path) -> None:
    workspace = Workspace(paths_of(source), load_config(overrides=("masks.policy=supplied",)))
    assert explain(workspace, "x/moved.nii.gz#3")["image"] == slice_of(source, 3)


def test_file_that_took_the_name_of_a_renamed_one_is_meant_by_it(source: Path) -> None:
    (source / "x" / "1.png").rename(source / "x" / "7.png")
    put(source, "x/1.png", 5)
    taken(source)
    ids = [row.image_id for row in rows_of(source) if row.path == "x/1.png"]
    assert [found(source, "x/7.png"), found(source, "x/1.png")] == ids


@pytest.mark.parametrize(("name", "said"), [("x/moved.nii.gz", "frames 0 to 3"), ("y/2.png", "names 2 images")])
def test_path_of_several_images_is_refused(source: Path, name: str, said: str) -> None:
    put(source, "y/2.png", 6)
    taken(source)
    with pytest.raises(InventoryError, match=said):
        found(source, name)


@pytest.mark.parametrize("name", ["x/old.nii.gz#3", "x/moved.nii.gz#3"])
def test_slice_is_withdrawn_by_its_path(source: Path, name: str) -> None:
    assert withdraw(paths_of(source), "x", image_ids=[name]).image_ids == (slice_of(source, 3),)


@pytest.mark.parametrize("name", ["x/old.nii.gz", "x/moved.nii.gz"])
def test_all_slices_are_withdrawn_by_the_path_of_their_volume(source: Path, name: str) -> None:
    expected = {slice_of(source, frame) for frame in range(4)}
    assert set(withdraw(paths_of(source), "x", image_ids=[name]).image_ids) == expected


def test_volume_that_was_changed_is_withdrawn_by_no_path(source: Path) -> None:
    values = np.random.default_rng(1).integers(0, 1000, (6, 7, 4)).astype(np.int16)
    put(source, "x/moved.nii.gz", zipped(nifti(values)))
    taken(source)
    with pytest.raises(InventoryError, match="names 8 images, because a file was changed"):
        withdraw(paths_of(source), "x", image_ids=["x/moved.nii.gz"])


def test_picture_is_withdrawn_by_its_path(source: Path) -> None:
    (row,) = (row for row in rows_of(source) if row.path == "y/2.png")
    assert withdraw(paths_of(source), "x", image_ids=["y/2.png"]).image_ids == (row.image_id,)


def test_patient_is_withdrawn_whatever_blanks_are_around_the_name(tmp_path: Path) -> None:
    source = put(tmp_path / "source", "1.png", 1).parent
    put(source, "2.png", 2)
    taken(source, put(tmp_path, "labels.csv", f"file,group\n1.png,p1\n2.png, {PATIENT} \n".encode()))
    (row,) = (row for row in rows_of(source) if row.path == "2.png")
    assert withdraw(paths_of(source), "x", patient=f" {PATIENT} ").image_ids == (row.image_id,)


def test_blank_patient_is_a_wrong_command(source: Path) -> None:
    with pytest.raises(UsageError, match="Name what is withdrawn"):
        withdraw(paths_of(source), "x", patient=" ")
