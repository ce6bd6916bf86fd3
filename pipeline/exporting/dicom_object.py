"""One DICOM segmentation object from masks and the source that they belong to; equal input gives equal bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from manifests.fingerprint import digest_bytes
from pipeline.exporting.dicom_source import PER_FRAME, SHARED, one_frame

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

LONGEST: Final = 64
"""Characters of a DICOM word (LO)."""
REMOVED: Final = "Attributes of patient, study, equipment and institution left out"


@dataclass(frozen=True, slots=True)
class Maker:
    """What made the masks."""

    model: str
    """Name of the segmenter; empty where masks were supplied."""
    policy: str
    version: str
    """Of MedFocus."""
    fingerprint: str
    """Of the masks, 64 hex digits."""
    created: datetime
    """When the masks were committed."""


def holds_all_frames(reference: Dataset) -> bool:
    """Whether one object can show all frames of a source: it has one, or says how they lie in the patient."""
    from highdicom.spatial import get_image_coordinate_system
    from highdicom.utils import is_multiframe_image

    if not is_multiframe_image(reference):
        return True
    return SHARED in reference and PER_FRAME in reference and get_image_coordinate_system(reference) is not None


def encode_segmentation(reference: Dataset, masks: NDArray[np.uint8], maker: Maker, frame: int | None = None) -> bytes:
    """Write one binary segmentation with one segment.

    Parameters
    ----------
    reference : Dataset
        The source, see `reference_of`.
    masks : ndarray of uint8, (F, Rows, Columns)
        0 and 1, one for every frame of the source; empty frames are left out.
    maker : Maker
        Goes into the description of the segment.
    frame : int, optional
        The one frame of the source, from 0, that the one mask belongs to, where the source has several.

    Returns
    -------
    bytes
        A DICOM file, explicit VR little endian.

    Raises
    ------
    ValueError
        If the source's geometry makes no sense, or does not fit the masks.
    """
    from highdicom.seg import Segmentation

    content = (maker.fingerprint, str(reference.SOPInstanceUID), str(frame), digest_bytes(np.packbits(masks).tobytes()))
    made = Segmentation(
        source_images=[reference if frame is None else one_frame(reference)],
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=[_segment(maker)],
        series_instance_uid=_uid("series", maker.fingerprint, str(reference.SeriesInstanceUID)),
        series_number=1,
        sop_instance_uid=_uid("instance", *content),
        instance_number=int(reference.get("InstanceNumber") or 1) if frame is None else frame + 1,
        manufacturer="MedFocus",
        manufacturer_model_name="MedFocus",
        software_versions=maker.version,
        device_serial_number=maker.fingerprint[:LONGEST],
        content_label="MEDFOCUS",
        series_description=f"MedFocus masks, {maker.policy}"[:LONGEST],
    )
    _settle(made, maker, _uid("dimensions", *content))
    if frame is not None:
        _refer_to_frame(made, str(reference.SOPClassUID), frame + 1)
    stream = io.BytesIO()
    made.save_as(stream)
    return stream.getvalue()


def _segment(maker: Maker) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm: dict[str, Any] = {"algorithm_type": SegmentAlgorithmTypeValues.MANUAL}
    if maker.model:
        identification = AlgorithmIdentificationSequence(
            name=maker.model[:LONGEST],
            family=codes.DCM.ArtificialIntelligence,
            version=f"MedFocus {maker.version}",
            parameters={"policy": maker.policy, "fingerprint": maker.fingerprint},
        )
        algorithm = {
            "algorithm_type": SegmentAlgorithmTypeValues.AUTOMATIC,
            "algorithm_identification": identification,
        }
    return SegmentDescription(
        segment_number=1,
        segment_label="region",
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=codes.DCM.ImageRegion,
        **algorithm,
    )


def _uid(*parts: str) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=list(parts)))


def _settle(made: Dataset, maker: Maker, dimensions: str) -> None:
    """Replace what highdicom takes from the clock and from chance; say that the patient's identity is removed."""
    date, time = maker.created.strftime("%Y%m%d"), maker.created.strftime("%H%M%S")
    made.InstanceCreationDate, made.InstanceCreationTime = date, time
    made.ContentDate, made.ContentTime = date, time
    for equipment in made.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = date + time
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    made.PatientIdentityRemoved, made.DeidentificationMethod = "YES", REMOVED


def _refer_to_frame(made: Dataset, sop_class: str, number: int) -> None:
    """Say in every reference to the source what it is, and which of its frames is meant."""
    images = list(made.get("SourceImageSequence", ()))
    for group in made.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence", ()):
            images += derivation.SourceImageSequence
    for item in images:
        item.ReferencedFrameNumber = number
    instances = [item for series in made.ReferencedSeriesSequence for item in series.ReferencedInstanceSequence]
    for item in (*images, *instances):
        item.ReferencedSOPClassUID = sop_class
