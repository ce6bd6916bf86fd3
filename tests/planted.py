"""Sources whose files and names bear the identifiers: phantoms as DICOM, pictures with texts, volumes, broken files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.identifiers import GIVEN, IDENTIFIERS, NAME, UID_ROOT

ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
PATIENT = f"{NAME}^{GIVEN}"
WINDOW = "1234567890"
"""A number as long as the name that takes its place in a broken file."""


def dicom_source(phantoms: Path, folder: Path) -> Path:
    """Phantoms as DICOM files, with a labels.csv by SOPInstanceUID; the n-th says YES, NO or nothing of burned-in text.

    Parameters
    ----------
    phantoms : Path
        What `make_phantoms` wrote.
    folder : Path
        The new source.
    """
    lines = []
    for number, row in enumerate(_table(phantoms / "labels.csv")):
        image = np.asarray(Image.open(phantoms / row["file"]))
        uid, mask = f"{UID_ROOT}.1.{number}", folder / "masks" / f"{NAME}-{number}.png"
        said = {0: "YES", 1: "NO"}.get(number % 3)
        write_dicom(folder / f"{PATIENT} scans" / f"{IDENTIFIERS['id']}-{number}.dcm", image, number, said)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.open(phantoms / row["mask"]).save(mask, pnginfo=texts())
        name = mask.relative_to(folder).as_posix()
        lines.append({"SOPInstanceUID": uid, "class": row["label"], "split": row["split"], "mask": name})
    write_table(folder / "labels.csv", lines)
    return folder


def write_dicom(
    file: Path, image: NDArray[np.uint8], number: int = 0, burned_in: str | None = None, window: str = "127.5"
) -> None:
    """One grey image as a DICOM file that names its patient everywhere; patient 0 bears the id as it is."""
    dataset = FileDataset(None, {}, preamble=b"\0" * 128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    of_patient = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": PATIENT,
        "PatientID": IDENTIFIERS["id"] + (f"-{number}" if number else ""),
        "PatientBirthDate": IDENTIFIERS["birth date"],
        "AccessionNumber": IDENTIFIERS["accession"],
        "InstitutionName": IDENTIFIERS["institution"],
        "DeviceSerialNumber": IDENTIFIERS["device serial"],
        "StudyID": IDENTIFIERS["study id"],
        "ReferringPhysicianName": IDENTIFIERS["referring physician"],
        "StudyInstanceUID": f"{UID_ROOT}.2.{number}",
        "SeriesInstanceUID": f"{UID_ROOT}.3.{number}",
        "SOPInstanceUID": f"{UID_ROOT}.1.{number}",
        "SOPClassUID": ULTRASOUND,
        "Modality": "US",
    }
    of_image = {
        "Rows": image.shape[0],
        "Columns": image.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "WindowCenter": window,
        "WindowWidth": "256",
        "PixelData": image.tobytes(),
    }
    for keyword, value in {**of_patient, **of_image}.items():
        setattr(dataset, keyword, value)
    if burned_in is not None:
        dataset.BurnedInAnnotation = burned_in
    dataset.private_block(0x0011, "MEDFOCUS TEST", create=True).add_new(0x01, "LO", IDENTIFIERS["private element"])
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)


def mixed_source(phantoms: Path, folder: Path) -> Path:
    """Pictures, a volume and broken files, with a labels.csv by file; six of them cannot be read."""
    folder.mkdir()
    rows = _table(phantoms / "labels.csv")
    image, mask = (np.asarray(Image.open(phantoms / rows[0][name])) for name in ("file", "mask"))
    turned = np.ascontiguousarray(image[:, ::-1])
    Image.fromarray(turned).save(folder / f"{NAME}.png", pnginfo=texts(), exif=_exif())
    Image.fromarray(turned[::-1]).save(folder / f"{NAME}.jpg", exif=_exif(), comment=IDENTIFIERS["id"].encode())
    Image.fromarray(mask[:, ::-1]).save(folder / "masks.png")
    _break(folder / "window.dcm", turned, WINDOW, IDENTIFIERS["referring physician"])
    _break(folder / "photometric.dcm", turned, "MONOCHROME2", f"{NAME}  ")
    _break(folder / "charset.dcm", turned, "ISO_IR 100", f"{NAME} ")
    write_dicom(folder / "short.dcm", turned, 77)
    (folder / "short.dcm").write_bytes((folder / "short.dcm").read_bytes()[:-3000])
    volume(folder / "volume.nii.gz", np.stack([image, turned, image[::-1]], axis=-1))
    volume(folder / "volume_mask.nii.gz", np.stack([mask, mask[:, ::-1], mask[::-1]], axis=-1))
    (folder / "short.nii").write_bytes(_plain_volume(folder, turned)[:-500])
    (folder / f"gone {NAME}.png").symlink_to(f"{GIVEN}.png")
    (folder / "no.png").write_bytes(f"{PATIENT} is no picture".encode())
    lines = []
    for number, name in enumerate(p.name for p in sorted(folder.iterdir()) if "mask" not in p.name):
        split, group = ("test", "train")[number % 2], f"{IDENTIFIERS['id']} {name}"
        its_mask = "volume_mask.nii.gz" if name == "volume.nii.gz" else "masks.png"
        lines.append({"file": name, "label": rows[0]["label"], "split": split, "group": group, "mask": its_mask})
    write_table(folder / "labels.csv", lines)
    return folder


def _break(file: Path, image: NDArray[np.uint8], value: str, name: str) -> None:
    """Put a name where a DICOM file has a number or a term."""
    write_dicom(file, image, 78, window=WINDOW)
    file.write_bytes(file.read_bytes().replace(value.encode(), name.encode()))


def volume(file: Path, voxels: NDArray[Any]) -> None:
    """A NIfTI volume that names its patient in every text of its header, and in an extension."""
    found = nibabel.Nifti1Image(voxels, np.eye(4))
    told = IDENTIFIERS["text in a volume"]
    for field, room in (("descrip", 80), ("aux_file", 24), ("db_name", 18), ("intent_name", 16)):
        found.header[field] = f"{told} {NAME}"[:room].encode()
    found.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{told} {PATIENT}".encode()))
    nibabel.save(found, file)


def _plain_volume(folder: Path, image: NDArray[np.uint8]) -> bytes:
    file = folder / "whole.nii"
    volume(file, np.stack([image, image[::-1]], axis=-1))
    data = file.read_bytes()
    file.unlink()
    return data


def texts() -> PngInfo:
    """Texts of a PNG file: plain, compressed, and compressed Unicode."""
    info = PngInfo()
    told = f"{IDENTIFIERS['text in a picture file']} {PATIENT}"
    info.add_text("Patient", told)
    info.add_text("Comment", told, zip=True)
    info.add_itxt("Author", told, zip=True)
    return info


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x010E] = f"{IDENTIFIERS['text in a picture file']} {NAME}"  # ImageDescription
    exif[0xA431] = IDENTIFIERS["device serial"]  # BodySerialNumber
    return exif


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_table(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write a CSV of equal rows."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
