"""Masks as NIfTI volumes: every slice back in its place, whichever way the voxels run."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from manifests.errors import ExitCode
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.reading import Plane, Reading
from manifests.volumes import slice_of, turned
from pipeline.config import load_config
from pipeline.exporting.command import ExportOptions, do_export
from pipeline.exporting.nifti import encode_nifti
from pipeline.workspace import Workspace
from tests.unit.manifests.niftis import nifti
from tests.unit.pipeline.files_of_scanners import PLANTED, commit_masks, native_of

KEY = "masks[supplied]"
SHAPE = (9, 12, 7)
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, -3, 11], [0, 0, 0, 1]])
"""Voxel axes that run to the front, left and feet."""
TILTED = AFFINE @ nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, -0.2, 0.25), [3, -4, 6])
"""The same, turned by some 15 degrees about each."""


def volume_file(path: Path, affine: NDArray[np.float64]) -> nibabel.Nifti1Image:
    """A volume of random values whose header names somebody."""
    image = nibabel.Nifti1Image(np.random.default_rng(3).random(SHAPE).astype(np.float32), affine)
    image.header["descrip"], image.header["aux_file"] = PLANTED[0], PLANTED[1]
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return image


def ingested(root: Path, reading: Reading, affine: NDArray[np.float64] = AFFINE, **fields: Any) -> Workspace:
    source = root / f"{PLANTED[0]} scans"
    source.mkdir()
    volume_file(source / "head.nii.gz", affine)
    if fields:
        data = nifti(np.random.default_rng(4).random(SHAPE).astype(np.float32), AFFINE, **fields)
        (source / "odd.nii").write_bytes(data)
    paths = DatasetPaths(root / "work" / "heads")
    ingest(paths, source, IngestOptions(dataset="heads", chunk_items=3, reading=reading))
    return Workspace(paths, load_config(overrides=("canvas_px=64", "masks.policy=supplied")))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("affine", [AFFINE, TILTED], ids=["permuted", "tilted"])
def test_masks_are_back_in_the_source_volume_voxel_by_voxel(
    tmp_path: Path, plane: Plane, affine: NDArray[np.float64]
) -> None:
    workspace = ingested(tmp_path, Reading(plane=plane, every=2), affine)
    failed = workspace.rows("drop-001")[1]
    commit_masks(workspace, KEY, failed=(failed.row,))
    do_export(workspace, "nifti", ExportOptions(tmp_path / "out"), as_json=False)
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    made = nibabel.load(file)
    assert isinstance(made, nibabel.Nifti1Image)
    voxels = np.asarray(made.dataobj)
    assert (voxels.shape, voxels.dtype) == (SHAPE, np.uint8)
    assert np.array_equal(made.affine, affine.astype(np.float32))
    lps, shown = turned(voxels, affine), native_of(workspace, KEY)
    for row, mask in shown.values():
        assert np.array_equal(slice_of(lps, plane, row.frame).astype(bool), mask)
    assert voxels.sum() == sum(int(mask.sum()) for _, mask in shown.values())
    with (tmp_path / "out" / "index.csv").open(newline="") as stream:
        lines = {line["image_id"]: line for line in csv.DictReader(stream)}
    assert (lines[failed.image_id]["status"], lines[failed.image_id]["slice"]) == ("failed", "2")
    assert {line["file"] for line in lines.values()} == {file.name, ""}
    for written in (tmp_path / "out").iterdir():
        data = written.read_bytes() if written.suffix != ".gz" else made.to_bytes()
        assert not [word for word in PLANTED if word.encode() in data]


def test_header_keeps_both_transforms_with_their_codes_and_no_text() -> None:
    source = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    source.set_qform(AFFINE, 1)
    source.set_sform(AFFINE, 4)
    source.header["intent_name"] = PLANTED[0]
    data = encode_nifti(source.to_bytes(), "axial", {})
    made = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    for form in ("qform", "sform"):
        ours, theirs = (getattr(image, f"get_{form}")(coded=True) for image in (made, source))
        assert np.allclose(ours[0], theirs[0])
        assert ours[1] == theirs[1]
    assert made.header["intent_name"] == b""
    assert data == encode_nifti(source.to_bytes(), "axial", {})


@pytest.mark.parametrize(
    "fields", [{"pixdim": [0, 2, 1.5, 3, 0, 0, 0, 0]}, {"pixdim": [1, -2, 0, 3, 0, 0, 0, 0]}, {"xyzt_units": 7}]
)
def test_volume_with_an_odd_header_is_exported_with_its_transforms(tmp_path: Path, fields: dict[str, Any]) -> None:
    workspace = ingested(tmp_path, Reading(), qform_code=1, sform_code=2, **fields)
    commit_masks(workspace, KEY)
    assert do_export(workspace, "nifti", ExportOptions(tmp_path / "out"), as_json=False) == ExitCode.DONE
    source = nibabel.load(next(tmp_path.glob("*/odd.nii")))
    digest = next(row.sha256 for row in workspace.rows("drop-001") if row.path == "odd.nii")
    made = nibabel.load(tmp_path / "out" / f"{digest[:16]}.nii.gz")
    assert np.array_equal(made.affine, AFFINE)
    assert np.allclose(made.header.get_qform(), source.header.get_qform())
    assert made.header.get_xyzt_units() == ("unknown", "unknown")


def test_volume_without_a_sound_transform_is_a_line_of_the_index_and_the_others_are_written(tmp_path: Path) -> None:
    workspace = ingested(tmp_path, Reading(), qform_code=1, sform_code=2, quatern_b=3.0, quatern_c=3.0)
    commit_masks(workspace, KEY)
    assert do_export(workspace, "nifti", ExportOptions(tmp_path / "out"), as_json=False) == ExitCode.FAILURES
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1
    with (tmp_path / "out" / "index.csv").open(newline="") as stream:
        statuses = [line["status"] for line in csv.DictReader(stream)]
    assert sorted(statuses) == ["decode.unreadable"] * 7 + ["ok"] * 7
