"""Masks as NIfTI volumes: every slice back in its place, whichever way the voxels run."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.reading import Plane, Reading
from manifests.volumes import slice_of, turned
from pipeline.config import load_config
from pipeline.exporting.command import ExportOptions, do_export
from pipeline.exporting.nifti import encode_nifti
from pipeline.workspace import Workspace
from tests.unit.pipeline.files_of_scanners import PLANTED, commit_masks, native_of

KEY = "masks[supplied]"
SHAPE = (9, 12, 7)
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, -3, 11], [0, 0, 0, 1]])
"""Voxel axes that run to the front, left and feet."""


def volume_file(path: Path) -> nibabel.Nifti1Image:
    """A volume of random values whose header names somebody."""
    image = nibabel.Nifti1Image(np.random.default_rng(3).random(SHAPE).astype(np.float32), AFFINE)
    image.header["descrip"], image.header["aux_file"] = PLANTED[0], PLANTED[1]
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return image


def ingested(root: Path, reading: Reading) -> Workspace:
    source = root / f"{PLANTED[0]} scans"
    source.mkdir()
    volume_file(source / "head.nii.gz")
    paths = DatasetPaths(root / "work" / "heads")
    ingest(paths, source, IngestOptions(dataset="heads", chunk_items=3, reading=reading))
    return Workspace(paths, load_config(overrides=("canvas_px=64", "masks.policy=supplied")))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_masks_are_back_in_the_source_volume_voxel_by_voxel(tmp_path: Path, plane: Plane) -> None:
    workspace = ingested(tmp_path, Reading(plane=plane, every=2))
    failed = workspace.rows("drop-001")[1]
    commit_masks(workspace, KEY, failed=(failed.row,))
    do_export(workspace, "nifti", ExportOptions(tmp_path / "out"), as_json=False)
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    made = nibabel.load(file)
    assert isinstance(made, nibabel.Nifti1Image)
    voxels = np.asarray(made.dataobj)
    assert (voxels.shape, voxels.dtype) == (SHAPE, np.uint8)
    assert np.array_equal(made.affine, AFFINE)
    lps, shown = turned(voxels, AFFINE), native_of(workspace, KEY)
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
