"""DICOM and NIfTI files with names planted in them, and committed masks of any shape for them; no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from manifests.commits import publish_chunk, read_rows
from manifests.types import ImageRow, ItemOutcome, Status, UnitResult
from pipeline.workspace import Workspace
from stages.base import empty_arrays, status_array
from stages.images import Placement, letterbox, unletterbox

PLANTED = ("Doe^Jane", "MRN-4711", "19710203", "ACC-0815", "General Hospital", "Dr^House", "scanner-9", "note to self")
"""What no export may hold."""
CT, SECONDARY = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
US_MANY, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.840.10008.5.1.4.1.1.2.1"
IN_THE_PATIENT: Mapping[str, Any] = {
    "FrameOfReferenceUID": "1.2.3.4",
    "ImagePositionPatient": [-10, -20, 35.5],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.5, 0.75],
    "SliceThickness": 3,
}


def dicom_file(path: Path, sop_class: str, shape: tuple[int, ...], **more: Any) -> Dataset:
    """Write a grey 8-bit file of random pixels, (H, W) or (F, H, W), and return its header."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = sop_class, generate_uid(entropy_srcs=[path.name])
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3.5", "1.2.3.6"
    made.Modality = "CT" if sop_class in (CT, ENHANCED_CT) else "US"
    made.PatientName, made.PatientID, made.PatientBirthDate, made.AccessionNumber = PLANTED[:4]
    made.InstitutionName, made.ReferringPhysicianName, made.StationName, made.ImageComments = PLANTED[4:]
    made.PatientSex, made.StudyID, made.StudyDate, made.StudyTime = "F", PLANTED[1], PLANTED[2], "120000"
    made.private_block(0x0011, PLANTED[0], create=True).add_new(0x01, "LO", PLANTED[1])
    made.Rows, made.Columns = shape[-2:]
    if len(shape) == 3:
        made.NumberOfFrames = shape[0]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    for name, value in more.items():
        setattr(made, name, value)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, shape, np.uint8).tobytes()
    made.PixelData = pixels + b"\0" * (len(pixels) % 2)
    made.save_as(path, enforce_file_format=True)
    return made


def stack_geometry(n: int, turn: Sequence[float] = IN_THE_PATIENT["ImageOrientationPatient"]) -> dict[str, Any]:
    """Functional groups of an enhanced CT of n slices along the normal of an orientation, with a name in them."""
    along = np.cross(turn[:3], turn[3:])
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = IN_THE_PATIENT["PixelSpacing"], 3
    orientation.ImageOrientationPatient = list(turn)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for number in range(n):
        frame, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [float(place) for place in [-10, -20, 0] + 3 * number * along]
        content.FrameComments = PLANTED[0]
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frames.append(frame)
    return {
        "FrameOfReferenceUID": "1.2.3.4",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }


def commit_masks(workspace: Workspace, key: str, failed: tuple[int, ...] = ()) -> None:
    """Commit a random mask for every image, and none for the rows that failed."""
    node = workspace.nodes[key]
    for drop in workspace.drops:
        store = workspace.store(node, drop.drop_id)
        for chunk in drop.chunks():
            rows = workspace.chunk_rows(chunk)
            statuses = [Status.FAILED if row.row in failed else Status.OK for row in rows]
            items = tuple(
                ItemOutcome(row.row, row.image_id, status, "" if status == Status.OK else "file.missing")
                for row, status in zip(rows, statuses, strict=True)
            )
            arrays = {**empty_arrays(store.specs, len(rows)), "status": status_array(items)}
            for index, (row, status) in enumerate(zip(rows, statuses, strict=True)):
                if status == Status.OK:
                    random = np.random.default_rng(row.row).random((row.height, row.width)) < 0.4
                    arrays["mask"][index], placement = letterbox(random, 64)
                    arrays["placement"][index] = placement.array()
            publish_chunk(store, chunk, UnitResult(arrays, items), {"inputs": {}})


def native_of(workspace: Workspace, key: str) -> dict[int, tuple[ImageRow, NDArray[np.bool_]]]:
    """Row and native mask of every image that did not fail, by row, of the first drop."""
    found = {}
    for chunk in workspace.drops[0].chunks():
        arrays = read_rows(workspace.store(workspace.nodes[key], chunk.drop), chunk)
        for index, row in enumerate(workspace.chunk_rows(chunk)):
            if arrays["status"][index] == Status.OK:
                placement = Placement.of(arrays["placement"][index])
                found[row.row] = row, unletterbox(arrays["mask"][index], placement, row.height, row.width)
    return found
