"""Nothing that a study writes or prints names a patient: every byte is searched for identifiers that were planted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import zarr

from manifests.drops import load_drops, load_rows
from manifests.layout import DatasetPaths
from tests.conftest import Cli, Finished
from tests.identifiers import GIVEN, IDENTIFIERS, NAME, Search, loose_modes
from tests.integration.pipelines import QUICK
from tests.planted import PATIENT, dicom_source, mixed_source

pytestmark = pytest.mark.slow

EXPORTS = {"provenance": 0, "coco": 0, "png": 0, "parquet": 0, "nifti": 0, "dicom-seg": 0}
"""Exit code by export."""


@dataclass
class Study:
    """A study of files that all name a patient, and everything that its commands printed."""

    cli: Cli
    root: Path
    printed: dict[str, Finished] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def dataset(self) -> Path:
        return self.work / "mine"

    @property
    def salt(self) -> Path:
        return self.root / "private" / "salt"

    def __call__(self, *arguments: object, code: int = 0) -> Finished:
        (self.root / "temporary").mkdir(exist_ok=True)
        env = {"MEDFOCUS_SALT_FILE": str(self.salt), "TMPDIR": str(self.root / "temporary")}
        done = self.cli(*arguments, "--workdir", self.work, env=env)
        assert done.code == code, done.err
        self.printed[" ".join(map(str, arguments))] = done
        return done

    def ingest(self, source: Path, *more: object) -> Finished:
        return self("ingest", source, "--dataset", "mine", "--labels", source / "labels.csv", *more)


@pytest.fixture(scope="module")
def study(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two drops, both kinds of workers, images that fail, every command that shows or writes something."""
    study = Study(cli, tmp_path_factory.mktemp("study"))
    first = dicom_source(phantom_folder, study.root / f"{NAME} {GIVEN}")
    second = mixed_source(phantom_folder, study.root / f"more of {PATIENT}")
    study.ingest(first, "--chunk-items", 9, "-v")
    study("run", "--stage", "one", "--cluster", "local", "--workers", 1, "-v", *QUICK)
    study.ingest(second, "-v")
    study("run", "--stage", "all", "--cluster", "inline", "-v", *QUICK, code=3)
    study.ingest(first, "--json")
    study("status", *QUICK)
    study("plan", "--json", *QUICK)
    study("explain", "drop-002/000000", *QUICK)
    study("verify", "--json")
    study("withdraw", "--image", image_ids(study, "drop-001")[0], "--reason", "consent revoked")
    study("gc", "--delete")
    study("run", "--stage", "all", "--cluster", "inline", *QUICK, code=3)
    for what, code in EXPORTS.items():
        study("export", what, *QUICK, code=code)
    asked = dicom_source(phantom_folder, study.root / f"asked of {PATIENT}")
    shown = ("--cell", "original-100-0", "--overlay", study.work / "pictures")
    done = study("predict", asked / f"{PATIENT} scans", *shown, *QUICK, code=3)
    assert "no answer: 1 (withdrawn)" in done.out
    return study


def image_ids(study: Study, drop_id: str) -> list[str]:
    paths = DatasetPaths(study.dataset)
    return [row.image_id for drop in load_drops(paths) if drop.drop_id == drop_id for row in load_rows(paths, drop)]


def test_no_byte_outside_drops_names_a_patient_or_a_source(study: Study) -> None:
    search = Search({**IDENTIFIERS, "source": str(study.root / NAME)})
    found = search.of_folder(study.work, passed=["drops"])
    # A segmentation must name the study, the series and the instance that it belongs to.
    referring = [hit for hit in found if hit.startswith("mine/exports/dicom-seg-")]
    assert {hit.rpartition(": ")[2] for hit in referring} == {"UIDs"}
    assert [hit for hit in found if hit not in referring] == []
    assert search.of_folder(study.root / "temporary") == []


def test_drops_hold_paths_and_nothing_else_of_the_files(study: Study) -> None:
    found = {hit.rpartition(": ")[2] for hit in Search().of_folder(study.dataset / "drops")}
    assert found == {"family name", "given name", "id"}  # names of folders and files


def test_commands_print_no_identifier(study: Study) -> None:
    search = Search()
    told = {name: search.of_text(done.out + done.err) for name, done in study.printed.items()}
    assert {name: what for name, what in told.items() if what} == {}


def test_failed_images_are_named_by_reason_and_id_alone(study: Study) -> None:
    out = next(done.out for name, done in study.printed.items() if name.startswith("run --stage all"))
    for reason in ("decode.unreadable", "decode.mode", "decode.truncated", "file.missing"):
        assert f"({reason})" in out


def test_explain_names_the_file_of_an_image_and_nothing_else(study: Study) -> None:
    image = image_ids(study, "drop-001")[3]
    done = study("explain", image, *QUICK)
    lines = [line for line in done.out.splitlines() if Search().of_text(line)]
    study.printed.popitem()
    assert len(lines) == 1
    assert f"{IDENTIFIERS['id']}-" in lines[0]


def test_drops_are_for_the_owner_and_the_salt_lies_outside(study: Study) -> None:
    assert loose_modes(study.dataset / "drops") == []
    assert study.salt.stat().st_mode & 0o777 == 0o600
    salt = Search({"salt": study.salt.read_text("ascii").strip()})
    assert salt.of_folder(study.work) == []


def test_ingest_says_whose_pixels_hold_text(study: Study) -> None:
    ingests = [done for name, done in study.printed.items() if name.startswith("ingest")]
    assert "DICOM files that say that text is burned into their pixels: 6; nothing removes it" in ingests[0].out
    assert "DICOM files that do not say whether text is burned into their pixels: 6; look at them" in ingests[0].out
    assert ingests[2].json["burned_in"] == {"YES": 6, "NO": 6, "": 6}


def test_search_finds_what_is_planted_in_a_store(study: Study, tmp_path: Path) -> None:
    store = tmp_path / "data.zarr"
    made = next((study.dataset / "stages" / "masks").glob("*/drop-002/data.zarr"))
    shutil.copytree(made, store, ignore=shutil.ignore_patterns("masked_image", "mask"))
    assert Search().of_folder(tmp_path) == []
    group = zarr.open_group(store, mode="r+")
    group["score"].attrs["source"] = {"path": f"/scans/{NAME}"}
    numbers = np.asarray(group["shape"][0])
    numbers[:3] = np.frombuffer(IDENTIFIERS["accession"].encode(), numbers.dtype)
    group["shape"][0] = numbers
    found = set(Search().of_folder(tmp_path))
    assert found >= {"data.zarr/score (attributes): family name", "data.zarr/shape (values): accession"}
