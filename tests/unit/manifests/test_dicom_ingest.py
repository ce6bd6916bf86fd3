"""DICOM files in a source: which are samples, who they belong to, and labels by UID."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from manifests.drops import load_drops, load_rows
from manifests.errors import InventoryError, ReadError
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.inventory import Scan, scan
from manifests.layout import DatasetPaths
from manifests.pseudonyms import pseudonym, read_salt
from manifests.readers import ImageSource
from manifests.reading import Reading
from tests.unit.manifests.dicoms import RTSTRUCT, SAMPLES, dicom, file_of, grey
from tests.unit.manifests.pictures import put

CANARY = "DOE-JANE-1969"


def ct(seed: int = 0, frames: int = 1, **elements: Any) -> bytes:
    """A file of noise of a seed's own."""
    shape = (frames, 8, 9) if frames > 1 else (8, 9)
    return dicom(np.random.default_rng(seed).integers(0, 4096, shape).astype(np.uint16), **elements)


def structures() -> bytes:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = RTSTRUCT, "1.2.3", "RTSTRUCT"
    return file_of(made)


def ingested(source: Path, **options: Any) -> IngestReport:
    return ingest(DatasetPaths(source.parent / "work"), source, IngestOptions(dataset="d", **options))


def with_csv(source: Path, text: str, columns: dict[str, str] | None = None) -> Scan:
    return scan(source, columns, put(source.parent, "labels.csv", text.encode()))


# Which files are samples.


def test_dicom_without_a_suffix_is_found_and_other_files_are_not(source):
    put(source, "a/IM-0001", ct(1))
    put(source, "a/1.2.840.113619.2", ct(2))
    put(source, "a/notes", b"text" * 100)
    put(source, "a/picture.png", 3)
    found = scan(source)
    assert [item.path for item in found.items] == ["a/1.2.840.113619.2", "a/IM-0001", "a/picture.png"]
    assert {item.label for item in found.items} == {"a"}
    assert found.ignored == 1


def test_files_without_a_picture_are_skipped_and_counted(source):
    put(source, "a/1.dcm", ct(1))
    put(source, "a/plan", structures())
    for name in ("liver_1frame.dcm", "test-SR.dcm", "rtdose.dcm", "dicomdirtests/DICOMDIR"):
        put(source, f"a/{Path(name).stem}.dcm", (SAMPLES / name).read_bytes())
    put(source, "a/DICOMDIR", (SAMPLES / "dicomdirtests" / "DICOMDIR").read_bytes())
    report = ingested(source)
    assert (report.new, report.ignored) == (1, 1)
    assert report.skipped == {"RTSTRUCT": 1, "SEG": 1, "SR without pixels": 1, "RTDOSE": 1, "DICOMDIR": 1}


def test_source_of_nothing_but_structures_is_refused_with_what_it_holds(source):
    put(source, "a/1.dcm", structures())
    with pytest.raises(InventoryError, match="No image in 'source', only 1 RTSTRUCT"):
        scan(source)


def test_damaged_file_is_a_row_with_its_reason(source):
    put(source, "a/1.dcm", ct(1))
    put(source, "a/2.dcm", ENVELOPE)
    reasons = {item.path: item.reason for item in scan(source).items}
    assert reasons == {"a/1.dcm": "", "a/2.dcm": "decode.encrypted"}


def test_encrypted_file_is_a_row_of_the_drop_that_tells_so_when_it_is_read(source):
    put(source, "a/1.dcm", ct(1))
    put(source, "a/2.dcm", ENVELOPE)
    ingested(source)
    paths = DatasetPaths(source.parent / "work")
    row = next(row for row in load_rows(paths, load_drops(paths)[0]) if row.path == "a/2.dcm")
    assert (row.width, row.height, row.bytes) == (0, 0, len(ENVELOPE))
    with pytest.raises(ReadError, match=r"decode\.encrypted"):
        ImageSource(source).read(row)


def test_burned_in_annotations_are_counted_by_what_files_say(source):
    for number, said in enumerate(("YES", "NO", "yes", None)):
        put(source, f"a/{number}.dcm", ct(number, **({"BurnedInAnnotation": said} if said else {})))
    put(source, "a/picture.png", 1)
    assert scan(source).burned_in == {"YES": 2, "NO": 1, "": 1}


def test_every_nth_frame_becomes_an_image_that_is_read_as_it_is(source):
    data = ct(1, frames=7)
    put(source, "a/1.dcm", data)
    ingested(source, reading=Reading(every=3))
    paths = DatasetPaths(source.parent / "work")
    rows = load_rows(paths, load_drops(paths)[0])
    assert [row.frame for row in rows] == [0, 3, 6]
    assert len({row.image_id for row in rows}) == 3
    assert np.array_equal(ImageSource(source).read(rows[2])[..., 0], grey(data, 6))


# Groups.


def test_patients_are_groups_hashed_with_the_salt(source):
    put(source, "a/1.dcm", ct(1, PatientID=CANARY))
    put(source, "a/2.dcm", ct(2, PatientID=f" {CANARY} "))
    put(source, "a/3.dcm", ct(3, PatientID="another"))
    groups = [item.group_id for item in scan(source).items]
    assert groups[0] == groups[1] == pseudonym(read_salt(), CANARY) != groups[2]


def test_group_of_the_csv_wins_over_the_patient(source):
    put(source, "1.dcm", ct(1, PatientID="other"))
    put(source, "2.dcm", ct(2, PatientID="kept"))
    groups = [item.group_id for item in with_csv(source, "file,group\n1.dcm,mine\n2.dcm,\n").items]
    assert groups == [pseudonym(read_salt(), "mine"), pseudonym(read_salt(), "kept")]


def test_frames_without_a_patient_belong_together_and_others_do_not(source):
    put(source, "a/1.dcm", ct(1, frames=4))
    put(source, "a/2.dcm", ct(2))
    groups = [item.group_id for item in scan(source).items]
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]


def test_patient_in_two_splits_leaks(source):
    put(source, "train/a/1.dcm", ct(1, PatientID=CANARY))
    put(source, "test/a/2.dcm", ct(2, PatientID=CANARY))
    assert ingested(source).leaking == 1


def test_no_file_of_the_work_folder_holds_a_patient(source):
    identity = {"PatientID": CANARY, "PatientName": CANARY, "StudyInstanceUID": "1.2.777.1", "StudyDescription": CANARY}
    put(source, "a/1.dcm", ct(1, **identity))
    put(source, "a/2.dcm", ct(2, **identity)[:-9])
    ingested(source)
    for path in (source.parent / "work").rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes()
            assert b"1.2.777.1" not in path.read_bytes()


# Labels by UID.


@pytest.fixture
def studies(source: Path) -> Path:
    """Two studies of two series of two files."""
    for number in range(8):
        study, series = f"1.2.{number // 4}", f"1.2.{number // 4}.{number // 2}"
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": f"{series}.{number}"}
        put(source, f"{study}/IM{number}", ct(number, **uids))
    return source


def labels(found: Scan) -> dict[str, str]:
    return {item.path.split("IM")[1]: item.label for item in found.items}


def test_study_labels_all_its_files(studies):
    found = with_csv(studies, "StudyInstanceUID,label\n1.2.0,benign\n1.2.1,malignant\n")
    assert labels(found) == {str(n): "benign" if n < 4 else "malignant" for n in range(8)}


def test_series_and_instance_label_their_files(studies):
    series = with_csv(studies, "SeriesInstanceUID,label\n1.2.0.1,x\n")
    assert labels(series) == {"2": "x", "3": "x"}
    assert series.unnamed == 6
    assert labels(with_csv(studies, "SOPInstanceUID,label\n1.2.1.3.7,y\n")) == {"7": "y"}


def test_lines_may_name_by_different_uids(studies):
    text = "study,series,instance,label\n1.2.0,,,a\n,1.2.1.2,,b\n,,1.2.1.3.6,c\n"
    assert labels(with_csv(studies, text)) == {**dict.fromkeys("0123", "a"), "4": "b", "5": "b", "6": "c"}


def test_all_uids_of_a_line_must_be_the_files(studies):
    assert labels(with_csv(studies, "study,series,label\n1.2.0,1.2.0.1,a\n")) == {"2": "a", "3": "a"}
    with pytest.raises(InventoryError, match=r"No line of the CSV names a DICOM file"):
        with_csv(studies, "study,series,label\n1.2.1,1.2.0.1,a\n")


def test_columns_of_uids_can_be_named(studies):
    found = with_csv(studies, "uid,dx\n1.2.0,a\n1.2.1,b\n", {"study": "uid", "label": "dx"})
    assert set(labels(found).values()) == {"a", "b"}


BAD = {
    "nothing": ("study,label\n9.9,b\n8.8,b\n", r"line 2 is the first.*Check its UIDs"),
    "twice": ("study,label\n1.2.0,a\n1.2.0,b\n", "lines 2 and 3 both name '1.2.0/IM0'.*one line for each file"),
    "study and series": ("study,series,label\n1.2.0,,a\n,1.2.0.1,b\n", "both name '1.2.0/IM2'"),
    "no uid": ("study,label\n1.2.0,a\n  ,b\n", "line 3 has no UID.*Fill the cell or delete the line"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_line_of_uids_is_refused_with_the_way_out(studies, name):
    text, message = BAD[name]
    with pytest.raises(InventoryError, match=message):
        with_csv(studies, text)


def test_pictures_and_structures_have_no_uids_to_be_named_by(studies):
    put(studies, "1.2.0/plan.dcm", file_of(plan()))
    put(studies, "1.2.0/picture.png", 1)
    found = with_csv(studies, "study,label\n1.2.0,a\n")
    assert set(labels(found)) == set("0123")
    assert found.skipped == {"RTSTRUCT": 1}


def plan() -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality, made.StudyInstanceUID = RTSTRUCT, "1.9", "RTSTRUCT", "1.2.0"
    return made


# Who files without a patient belong to, and stand-ins for patients.


def test_files_of_one_study_are_one_group_where_no_patient_is_named(source):
    for number in range(4):
        study = {"StudyInstanceUID": f"1.2.{number // 2}", "SeriesInstanceUID": f"1.3.{number}"}
        put(source, f"a/{number}.dcm", ct(number, PatientID="", **study))
    put(source, "a/alone.dcm", ct(9, PatientID=""))
    report = ingested(source)
    groups = {item.path: item.group_id for item in scan(source).items}
    assert groups["a/0.dcm"] == groups["a/1.dcm"] != groups["a/2.dcm"] == groups["a/3.dcm"]
    assert groups["a/0.dcm"] == pseudonym(read_salt(), "uid:1.2.0")
    assert report.without_patient == 1


def test_one_patient_id_of_many_studies_is_told(source):
    for number in range(5):
        put(source, f"a/{number}.dcm", ct(number, PatientID="ANON", StudyInstanceUID=f"1.2.{number}"))
    put(source, "a/own.dcm", ct(9, PatientID="P1", StudyInstanceUID="1.9"))
    assert ingested(source).shared_patient == (5, 5)


def test_lines_of_a_csv_whose_files_have_not_come_are_counted(source):
    put(source, "a/1.dcm", ct(1, SeriesInstanceUID="1.1"))
    found = with_csv(source, "series,label\n1.1,x\n1.2,y\n1.3,y\n")
    assert ([item.label for item in found.items], found.absent) == (["x"], 2)
    with pytest.raises(InventoryError, match="No line of the CSV names a DICOM file"):
        with_csv(source, "series,label\n1.2,y\n1.3,y\n")


ENVELOPE = b"\x30\x80" + bytes.fromhex("06092a864886f70d010703") + bytes(99)
"""The beginning of an encrypted file."""


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "decode.unreadable"),
        ({"PhotometricInterpretation": "HSV"}, "decode.mode"),
    ],
)
def test_file_that_a_line_names_and_whose_picture_is_refused_is_a_row_with_its_reason(source, elements, reason):
    put(source, "a/1.dcm", ct(1, StudyInstanceUID="1.1"))
    put(source, "a/2.dcm", ct(2, StudyInstanceUID="1.2", **elements))
    found = with_csv(source, "study,label\n1.1,x\n1.2,y\n")
    assert [(item.label, item.reason) for item in found.items] == [("x", ""), ("y", reason)]
    assert (found.absent, found.unnamed, found.unreadable) == (0, 0, 0)


def test_dicom_objects_of_an_export_are_named_by_no_line(source):
    put(source, "a/1.dcm", ct(1, StudyInstanceUID="1.1"))
    put(source, "out/2.dcm", ct(2, StudyInstanceUID="1.1"))
    put(source, "out/export.json", b'{"schema": "medfocus.export"}')
    found = with_csv(source, "study,label\n1.1,x\n")
    assert [item.path for item in found.items] == ["a/1.dcm"]


def test_files_whose_uids_cannot_be_read_are_counted(source):
    put(source, "a/1.dcm", ct(1, StudyInstanceUID="1.1"))
    put(source, "a/2.dcm", ENVELOPE)
    put(source, "a/3.png", b"no picture")
    labels = put(source.parent, "labels.csv", b"study,label\n1.1,x\n1.2,y\n")
    report = ingested(source, labels=labels)
    assert (report.new, report.absent, report.unnamed, report.unreadable) == (1, 1, 2, 1)
    labels.write_text("study,label\n1.2,y\n")
    with pytest.raises(InventoryError, match="1 DICOM files there have a header that cannot be read"):
        ingested(source, labels=labels)


def test_csv_with_semicolons_is_told_so(source):
    put(source, "a/1.png", 1)
    with pytest.raises(InventoryError, match="separated by semicolons"):
        with_csv(source, "file;label\na/1.png;x\n")


def test_skipped_files_are_not_asked_of_burned_in_text(source):
    put(source, "a/1.dcm", ct(1, BurnedInAnnotation="NO"))
    put(source, "a/2.dcm", structures())
    assert ingested(source).burned_in == {"NO": 1}
