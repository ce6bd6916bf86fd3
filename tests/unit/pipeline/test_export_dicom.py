"""DICOM segmentations, read back by highdicom: the committed pixels, the source's references, and nobody's name."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from manifests.errors import ExitCode
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.types import ImageRow
from pipeline.config import load_config
from pipeline.exporting.command import ExportOptions, do_export
from pipeline.workspace import Workspace
from tests.unit.pipeline.files_of_scanners import (
    CT,
    ENHANCED_CT,
    IN_THE_PATIENT,
    PLANTED,
    SECONDARY,
    US_MANY,
    commit_masks,
    dicom_file,
    native_of,
    stack_geometry,
)

KEY = "masks[supplied]"
_TURN = np.deg2rad([25, 10])
_COS, _SIN = np.cos(_TURN), np.sin(_TURN)
OBLIQUE = [float(c) for c in (_COS[0], _SIN[0], 0, -_SIN[0] * _COS[1], _COS[0] * _COS[1], _SIN[1])]
"""Rows turned about the head's axis, columns tilted out of the axial plane besides."""
TILTED = {"ImageOrientationPatient": [f"{c:.12f}" for c in OBLIQUE]}


@dataclass(frozen=True)
class Exported:
    """A data set of four files, one row of which failed, and its export."""

    workspace: Workspace
    sources: dict[str, Dataset]
    out: Path

    def rows(self, name: str) -> list[tuple[ImageRow, NDArray[np.bool_]]]:
        """Row and committed mask of a source file's images, by frame."""
        found = [pair for pair in native_of(self.workspace, KEY).values() if Path(pair[0].path).stem == name]
        return sorted(found, key=lambda pair: pair[0].frame)

    def segmentation(self, row: ImageRow) -> Any:
        """What the index says shows a row."""
        with (self.out / "index.csv").open(newline="") as stream:
            lines = {line["image_id"]: line for line in csv.DictReader(stream)}
        return hd.seg.segread(self.out / lines[row.image_id]["file"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("dicom")
    source = root / f"{PLANTED[0]} scans"
    source.mkdir()
    sources = {
        "slice": dicom_file(source / "slice.dcm", CT, (37, 91), **IN_THE_PATIENT),
        "still": dicom_file(source / "still.dcm", SECONDARY, (50, 33), LossyImageCompression="01"),
        "cine": dicom_file(source / "cine.dcm", US_MANY, (3, 21, 40)),
        "oblique": dicom_file(source / "oblique.dcm", CT, (30, 26), **{**IN_THE_PATIENT, **TILTED}),
        "tilted": dicom_file(source / "tilted.dcm", ENHANCED_CT, (4, 22, 25), **stack_geometry(4, OBLIQUE)),
        "stack": dicom_file(source / "stack.dcm", ENHANCED_CT, (5, 24, 31), **stack_geometry(5)),
    }
    paths = DatasetPaths(root / "work" / "scans")
    ingest(paths, source, IngestOptions(dataset="scans", chunk_items=3))
    workspace = Workspace(paths, load_config(overrides=("canvas_px=64", "masks.policy=supplied")))
    gone = next(row.row for row in workspace.rows("drop-001") if row.path == "stack.dcm" and row.frame == 2)
    commit_masks(workspace, KEY, failed=(gone,))
    do_export(workspace, "dicom-seg", ExportOptions(root / "out"), as_json=False)
    return Exported(workspace, sources, root / "out")


@pytest.mark.parametrize("name", ["slice", "still"])
def test_single_image_gives_its_pixels_and_references_its_source(exported: Exported, name: str) -> None:
    ((row, mask),) = exported.rows(name)
    made, source = exported.segmentation(row), exported.sources[name]
    assert np.array_equal(made.pixel_array.astype(bool), mask)
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    assert [i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence] == [source.SOPInstanceUID]
    assert made.StudyInstanceUID == source.StudyInstanceUID
    assert made.SegmentationType == "BINARY"
    assert made.LossyImageCompression == source.get("LossyImageCompression", "00")
    read = made.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
    assert np.array_equal(read[0, ..., 0].astype(bool), mask)


def test_native_geometry_of_the_source_is_kept(exported: Exported) -> None:
    ((row, _),) = exported.rows("slice")
    made = exported.segmentation(row)
    shared, frame = made.SharedFunctionalGroupsSequence[0], made.PerFrameFunctionalGroupsSequence[0]
    assert made.FrameOfReferenceUID == IN_THE_PATIENT["FrameOfReferenceUID"]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == IN_THE_PATIENT["PixelSpacing"]
    assert frame.PlanePositionSequence[0].ImagePositionPatient == IN_THE_PATIENT["ImagePositionPatient"]


def test_stack_of_frames_is_one_object_without_the_frame_that_failed(exported: Exported) -> None:
    rows, source = exported.rows("stack"), exported.sources["stack"]
    made = exported.segmentation(rows[0][0])
    numbers = [row.frame + 1 for row, _ in rows]
    assert numbers == [1, 2, 4, 5]
    read = made.get_pixels_by_source_frame(source.SOPInstanceUID, numbers, ignore_spatial_locations=True)
    assert np.array_equal(read[..., 0].astype(bool), np.stack([mask for _, mask in rows]))
    assert made.NumberOfFrames == 4


def points(affine: NDArray[np.float64], inside: NDArray[Any]) -> NDArray[np.float64]:
    """Where the voxels of a mask lie in the patient, in thousandths of a millimetre, sorted."""
    places = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    return np.unique(np.rint(places * 1000), axis=0)


def test_oblique_image_keeps_its_orientation(exported: Exported) -> None:
    ((row, mask),) = exported.rows("oblique")
    made = exported.segmentation(row)
    group = made.SharedFunctionalGroupsSequence[0]
    assert np.allclose(group.PlaneOrientationSequence[0].ImageOrientationPatient, OBLIQUE)
    volume = made.get_volume(combine_segments=True)
    across, down = np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:])
    assert np.allclose(volume.affine[:3, 1:3], np.stack([down * 0.5, across * 0.75], axis=1))
    assert np.allclose(volume.position, IN_THE_PATIENT["ImagePositionPatient"])
    assert np.array_equal(volume.array[0].astype(bool), mask)


def test_pixels_of_an_oblique_stack_lie_where_those_of_its_source_do(exported: Exported) -> None:
    rows, expected = exported.rows("tilted"), []
    across, down = np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:])
    for row, mask in rows:
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = down * 0.5, across * 0.75
        affine[:3, 3] = [-10, -20, 0] + 3 * row.frame * np.cross(across, down)
        expected.append(points(affine, mask[:, :, None]))
    volume = exported.segmentation(rows[0][0]).get_volume(combine_segments=True)
    assert np.array_equal(points(volume.affine, volume.array), np.unique(np.concatenate(expected), axis=0))


def test_loop_without_geometry_is_one_object_a_frame_that_names_it(exported: Exported) -> None:
    for row, mask in exported.rows("cine"):
        made = exported.segmentation(row)
        assert np.array_equal(made.pixel_array.astype(bool), mask)
        (derivation,) = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
        (reference,) = derivation.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == exported.sources["cine"].SOPInstanceUID
        assert reference.ReferencedFrameNumber == row.frame + 1
        assert reference.ReferencedSOPClassUID == US_MANY


def test_nobody_is_named_and_the_patient_is_a_pseudonym(exported: Exported) -> None:
    for file in exported.out.iterdir():
        data = file.read_bytes()
        assert not [word for word in (*PLANTED, "scans") if word.encode() in data.replace(b'"dataset": "scans"', b"")]
    ((row, _),) = exported.rows("slice")
    made = exported.segmentation(row)
    assert (made.PatientID, made.PatientName, made.AccessionNumber) == (row.group_id, "", "")
    assert made.PatientIdentityRemoved == "YES"


def test_repeated_export_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    do_export(exported.workspace, "dicom-seg", ExportOptions(tmp_path / "again"), as_json=False)
    first, second = ({f.name: f.read_bytes() for f in out.iterdir()} for out in (exported.out, tmp_path / "again"))
    assert first == second
    assert len(first) == 1 + 1 + 3 + 1 + 1 + 1 + 2


def test_source_that_is_gone_is_a_line_of_the_index(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    workspace = Workspace(exported.workspace.paths, exported.workspace.config, tmp_path / "empty")
    assert do_export(workspace, "dicom-seg", ExportOptions(tmp_path / "out"), as_json=False) == ExitCode.FAILURES
    assert "file.missing" in (tmp_path / "out" / "index.csv").read_text()
