"""What a segmentation must know of its source: references and geometry, taken one by one, and nothing of a person.

Whatever is not named here is left behind, so that no private tag, comment or name can come along.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from manifests.dicom_files import parse_header

if TYPE_CHECKING:
    from pydicom import Dataset

REFERENCES: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""What a reference cannot be without."""
GEOMETRY: Final = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
)
LOSSY: Final = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
OTHERS: Final = ("FrameOfReferenceUID", "Modality", "InstanceNumber", "Rows", "Columns", *LOSSY)
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS: Final = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
"""Functional groups that hold geometry."""
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
BLANK: Final = (
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes that the standard wants to be there, and lets be empty."""


def reference_of(data: bytes, pseudonym: str) -> Dataset | None:
    """The source as a segmentation may know it; None if it lacks a UID by which it could be referenced.

    Parameters
    ----------
    data : bytes
        The source's file.
    pseudonym : str
        Becomes the PatientID.
    """
    source = parse_header(data)
    if not all(source.get(name) for name in REFERENCES):
        return None
    reference = _taken(source, (*REFERENCES, *OTHERS, *GEOMETRY))
    reference.NumberOfFrames = int(source.get("NumberOfFrames", 1) or 1)
    for name in (SHARED, PER_FRAME):
        if name in source:
            setattr(reference, name, [_groups(item) for item in source[name].value])
    for name in BLANK:
        setattr(reference, name, "")
    reference.PatientID = pseudonym
    return reference


def one_frame(reference: Dataset) -> Dataset:
    """The source as if it were of a class of single images: of others highdicom wants groups that this one lacks."""
    alone = copy.deepcopy(reference)
    alone.SOPClassUID, alone.NumberOfFrames = SECONDARY_CAPTURE, 1
    for name in (SHARED, PER_FRAME):
        if name in alone:
            delattr(alone, name)
    return alone


def _groups(item: Dataset) -> Dataset:
    from pydicom import Dataset

    found = Dataset()
    for name in GROUPS:
        if name in item:
            setattr(found, name, [_taken(group, GEOMETRY) for group in item[name].value])
    return found


def _taken(source: Dataset, names: Sequence[str]) -> Dataset:
    from pydicom import Dataset

    found = Dataset()
    for name in names:
        value = source.get(name)
        if value is not None and value != "":
            setattr(found, name, value)
    return found
