"""What is told of DICOM files: whether text is burned into their pixels, and no value that could be a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest

from manifests.dicom_files import DICOM
from manifests.ingest import IngestOptions
from manifests.readers import MAX_PIXELS
from manifests.reading import Request
from pipeline.commands import do_ingest
from tests.identifiers import NAME
from tests.planted import write_dicom

BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"


def told(
    folder: Path, words: Sequence[str | None], capsys: pytest.CaptureFixture[str], *, as_json: bool = False
) -> str:
    """What ingest prints of one file for every word."""
    for number, word in enumerate(words):
        image = np.full((8, 8), number, np.uint8)
        write_dicom(folder / "scans" / "train" / "benign" / f"{number}.dcm", image, number, word)
    do_ingest(folder / "work", folder / "scans", IngestOptions(dataset="mine"), as_json=as_json)
    return capsys.readouterr().out


def test_files_that_say_yes_and_files_that_say_nothing_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(tmp_path, ["YES", "YES ", "NO", None, ""], capsys)
    assert "  DICOM files that say that text is burned into their pixels: 2; nothing removes it" in out
    assert "  DICOM files that do not say whether text is burned into their pixels: 2; look at them" in out


def test_files_that_all_say_no_are_not_worth_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "burned" not in told(tmp_path, ["NO", "NO"], capsys)


def test_word_that_could_be_a_name_is_counted_as_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(tmp_path, ["NO", NAME.upper()], capsys, as_json=True)
    assert '"burned_in": {"NO": 1, "": 1}' in out
    assert NAME.lower() not in out.lower()


def test_pydicom_s_warnings_quote_no_value_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    told(tmp_path, ["NO"], capsys)
    file = tmp_path / "scans" / "train" / "benign" / "0.dcm"
    file.write_bytes(file.read_bytes().replace(b"ISO_IR 100", f"{NAME} ".encode()))
    data = file.read_bytes()
    assert DICOM.image(data, Request(0, MAX_PIXELS)).shape == (8, 8, 3)
    assert NAME not in caplog.text


@pytest.mark.parametrize(("modality", "kind"), [("SR", "SR"), (NAME.upper(), "DICOM")])
def test_only_modalities_of_the_standard_are_told_of_files_without_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], modality: str, kind: str
) -> None:
    file = tmp_path / "scans" / "train" / "benign" / "report.dcm"
    write_dicom(file, np.zeros((8, 8), np.uint8), 9)
    dataset = pydicom.dcmread(file)
    del dataset.Rows, dataset.PixelData
    dataset.Modality, dataset.SOPClassUID = modality, BASIC_TEXT_SR
    dataset.save_as(file)
    assert f"DICOM files without an image, skipped: 1 {kind} without pixels" in told(tmp_path, ["NO"], capsys)
