"""A breast ultrasound study asked about its own test images, and about chest X-rays, which it has never seen."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli
from tests.realdata.test_published_sets import SETTINGS, data_set

pytestmark = [pytest.mark.slow, pytest.mark.realdata]

TRAIN, TEST, XRAYS = 40, 12, 12
"""Images of each class, and X-rays."""
ORIGINAL = (*SETTINGS, "--set", 'probes.methods=["original"]')


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def study_of_some(busi: Path, folder: Path) -> None:
    """The first images of each class and split, in split folders."""
    taken: dict[tuple[str, str], int] = {}
    for row in table(busi / "index.csv"):
        kind = row["clean_split"], row["class"]
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= {"train": TRAIN, "test": TEST}.get(kind[0], 0):
            to = folder.joinpath(*kind)
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(busi / row["file"], to)


def test_busi_test_images_get_the_study_s_numbers_and_x_rays_are_unlike(cli: Cli, tmp_path: Path) -> None:
    study_of_some(data_set("busi_breast_ultrasound"), tmp_path / "busi")
    x_rays = tmp_path / "x-rays"
    x_rays.mkdir()
    for file in sorted((data_set("chest_xray_pneumonia") / "test").rglob("*.jpg"))[:: 624 // XRAYS][:XRAYS]:
        shutil.copy(file, x_rays)
    work = ("--workdir", tmp_path / "work")
    assert cli("ingest", tmp_path / "busi", "--dataset", "busi", *work).code == 0
    assert cli("run", "--stage", "probes", *work, *ORIGINAL).code == 0
    for name, source in {"test": tmp_path / "busi" / "test", "x-rays": x_rays}.items():
        done = cli("predict", source, "--out", tmp_path / f"answers-{name}", *work, *ORIGINAL)
        assert done.code == 0, done.err
    expected = {row["image_id"]: row for row in table(next(tmp_path.rglob("original-100-0/predictions.csv")))}
    found = table(tmp_path / "answers-test" / "predictions.csv")
    assert len(found) == len(expected) == 3 * TEST
    columns = [name for name in found[0] if name.startswith("p_")]
    for row in found:
        same = expected[row["image_id"]]
        np.testing.assert_allclose([float(row[c]) for c in columns], [float(same[c]) for c in columns], atol=1e-6)
    assert sum(row["unlike"] == "1" for row in found) <= 4
    strangers = table(tmp_path / "answers-x-rays" / "predictions.csv")
    assert len(strangers) == XRAYS
    assert sum(row["unlike"] == "1" for row in strangers) == XRAYS
