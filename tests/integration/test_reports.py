"""Reports of real runs: where they lie, when they are written, and what flagged test images do to them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.integration.pipelines import QUICK, copy_source
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def leaking(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study in which one patient has an image in train and one in test, not yet run."""
    root = tmp_path_factory.mktemp("leaking")
    study = Study(cli, root / "work", copy_source(phantom_folder, root / "source"))
    labels = study.source / "labels.csv"
    with labels.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for split in ("train", "test"):
        next(row for row in rows if row["split"] == split)["group"] = "patient"
    with labels.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = study.ingest("--chunk-items", 4, "--columns", "label=label,split=split,group=group,mask=mask")
    assert done.code == 0, done.err
    return study


def test_whole_run_names_its_report_and_every_part_names_none(leaking: Study) -> None:
    assert leaking.run("--stage", "one", "--json").json["report"] is None
    part = leaking.run("--part", "1/1", "--json")
    assert (part.code, part.json["report"]) == (0, None)
    whole = leaking.run("--json").json
    assert whole["committed"] == {}
    assert whole["report"].startswith("phantoms/reports/")
    assert (leaking.work / whole["report"]).is_file()
    said = leaking.cli("report", "--workdir", leaking.work, *QUICK).out
    assert said.rstrip().endswith(whole["report"])
    assert "without the 1 flagged test images" in said
    assert "/10)" in said.split("flagged")[1]
