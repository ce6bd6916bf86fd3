"""Images without a label, asked of a head of a finished study: the study's own numbers, and nothing computed twice."""

from __future__ import annotations

import csv
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.drops import load_drops, load_rows
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.listing import is_export
from manifests.types import Split
from stages.prediction.picture import picture_height
from tests.conftest import Cli, Finished
from tests.integration.pipelines import QUICK, committed, copy_source, digests
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

CELL = "medfocus-100-0"
METHODS = ("--set", 'probes.methods=["medfocus","masked","original","shape","shuffled","constant"]')
VIEWS = ("--set", 'embeddings.views=["original","masked","shuffled"]')
SETTINGS = (*QUICK, *METHODS, *VIEWS)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def predict(study: Study, source: Path, out: Path, *more: object, settings: tuple[str, ...] = SETTINGS) -> Finished:
    where = ("--workdir", study.work, "--out", out, "--cluster", "inline")
    return study.cli("predict", source, *where, *settings, *more)


def unlabelled(study: Study, folder: Path, split: Split = Split.TEST) -> Path:
    """Images of one split alone, under names that say nothing, each with its mask beside it."""
    folder.mkdir()
    paths = DatasetPaths(study.dataset)
    rows = [row for drop in load_drops(paths) for row in load_rows(paths, drop) if row.split is split]
    for number, row in enumerate(rows):
        shutil.copy(study.source / row.path, folder / f"scan-{number}.png")
        shutil.copy(study.source / row.mask_path, folder / f"scan-{number}_mask.png")
    return folder


@pytest.fixture(scope="module")
def finished(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A quick study whose test images were predicted once, into `out` beside it."""
    root = tmp_path_factory.mktemp("predict")
    study = Study(cli, root / "work", copy_source(phantom_folder, root / "source"))
    assert study.ingest("--chunk-items", 4).code == 0
    done = study.run("--stage", "probes", settings=SETTINGS)
    assert done.code == 0, done.err
    scans = unlabelled(study, root / "scans")
    told = predict(study, scans, root / "out", "--cell", CELL, "--overlay", root / "pictures")
    assert told.code == 0, told.err
    (root / "told.txt").write_text(told.out)
    return study


@pytest.fixture
def study(finished: Study, tmp_path: Path) -> Study:
    return finished.copied(tmp_path / "work")


def beside(study: Study, name: str) -> Path:
    return study.work.with_name(name)


def of_the_study(study: Study, cell: str) -> dict[str, list[float]]:
    """Probabilities of the test images by id, as the study's own predictions.csv has them."""
    file = next((study.dataset / "stages" / "probes").glob(f"*/commits/{cell}/predictions.csv"))
    return {row["image_id"]: [float(row[c]) for c in row if c.startswith("p_")] for row in table(file)}


def told(out: Path) -> dict[str, list[float]]:
    rows = table(out / "predictions.csv")
    return {row["image_id"]: [float(row[c]) for c in row if c.startswith("p_")] for row in rows}


def assert_same(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert found.keys() == expected.keys()
    for image_id, probabilities in found.items():
        np.testing.assert_allclose(probabilities, expected[image_id], atol=1e-6)


def test_test_images_get_the_probabilities_of_the_study(finished: Study) -> None:
    assert_same(told(beside(finished, "out")), of_the_study(finished, CELL))


@pytest.mark.parametrize("cell", ["original-50-1", "shape-100-0", "probes[supplied]/masked-100-1"])
def test_any_cell_can_be_asked(study: Study, tmp_path: Path, cell: str) -> None:
    assert predict(study, beside(finished_of(study), "scans"), tmp_path / "out", "--cell", cell).code == 0
    assert_same(told(tmp_path / "out"), of_the_study(study, cell.split("/")[-1]))


def finished_of(study: Study) -> Study:
    """The study that a copy was made of: its source lies beside it."""
    return Study(study.cli, study.source.with_name("work"), study.source)


def test_one_image_alone_gets_what_it_gets_among_others(study: Study, tmp_path: Path) -> None:
    shutil.rmtree(study.dataset / "predictions")
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("scan-3.png", "scan-3_mask.png"):
        shutil.copy(beside(finished_of(study), "scans") / name, alone / name)
    assert predict(study, alone, tmp_path / "out", "--cell", CELL).code == 0
    found, among = told(tmp_path / "out"), told(beside(finished_of(study), "out"))
    assert len(found) == 1
    assert_same(found, {image_id: among[image_id] for image_id in found})


def test_second_time_computes_nothing_and_says_the_same(study: Study, tmp_path: Path) -> None:
    before, runs = digests(study.dataset / "predictions"), sorted((study.dataset / "predictions" / "runs").iterdir())
    scans = beside(finished_of(study), "scans")
    assert predict(study, scans, tmp_path / "out", "--cell", CELL).code == 0
    assert digests(study.dataset / "predictions") == before
    assert sorted((study.dataset / "predictions" / "runs").iterdir()) == runs
    for name in ("predictions.csv", "predictions.jsonl", "provenance.json"):
        assert (tmp_path / "out" / name).read_bytes() == (beside(finished_of(study), "out") / name).read_bytes()


def test_new_image_alone_is_computed(study: Study, tmp_path: Path) -> None:
    scans = copy_source(beside(finished_of(study), "scans"), tmp_path / "scans")
    Image.open(scans / "scan-0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(scans / "new.png")
    assert predict(study, scans, tmp_path / "out", "--cell", CELL).code == 0
    assert sorted(committed(study.dataset / "predictions")) == [
        "embeddings[supplied]/drop-002/000000",
        "masks[supplied]/drop-002/000000",
    ]
    assert len(told(tmp_path / "out")) == 7


def test_image_that_left_the_source_is_not_predicted(study: Study, tmp_path: Path) -> None:
    scans = copy_source(beside(finished_of(study), "scans"), tmp_path / "scans")
    for file in scans.glob("scan-[0-3]*"):
        file.unlink()
    assert predict(study, scans, tmp_path / "out", "--cell", CELL).code == 0
    assert len(told(tmp_path / "out")) == 2


def test_unreadable_file_is_a_line_with_its_reason(study: Study, tmp_path: Path) -> None:
    scans = copy_source(beside(finished_of(study), "scans"), tmp_path / "scans")
    whole = (scans / "scan-0.png").read_bytes()
    (scans / "torn.png").write_bytes(whole[: len(whole) // 2])
    done = predict(study, scans, tmp_path / "out", "--cell", CELL, "--names")
    assert done.code == 3
    row = next(row for row in table(tmp_path / "out" / "predictions.csv") if row["file"] == "torn.png")
    assert (row["status"], row["reason"], row["predicted"]) == ("failed", "decode.truncated", "")
    assert "no answer: 1 (decode.truncated)" in done.out


def test_folders_of_the_source_are_no_labels(study: Study, tmp_path: Path) -> None:
    scans = copy_source(beside(finished_of(study), "scans"), tmp_path / "all" / "spiculated")
    assert predict(study, scans.parent, tmp_path / "out", "--cell", CELL).code == 0
    assert_same(told(tmp_path / "out"), of_the_study(study, CELL))


def test_cell_that_is_not_fitted_is_refused_and_nothing_is_computed(study: Study, tmp_path: Path) -> None:
    before = digests(study.dataset)
    scans = beside(finished_of(study), "scans")
    done = predict(study, scans, tmp_path / "out", "--set", "study.seeds=[7]")
    assert done.code == 4
    assert "medfocus-100-7 is not fitted" in done.err
    assert "pipeline run --stage probes --dataset phantoms" in done.err
    other = predict(study, scans, tmp_path / "out", "--set", "masks.policy=none")
    assert other.code == 4
    assert "probes[none] waits for masks[none], embeddings[none]" in other.err
    assert digests(study.dataset) == before


@pytest.mark.parametrize(("cell", "why"), [("nonsense-1-1", "no cell"), ("shuffled-100-0", "mask of another")])
def test_cell_that_cannot_predict_is_a_wrong_command(study: Study, tmp_path: Path, cell: str, why: str) -> None:
    done = predict(study, beside(finished_of(study), "scans"), tmp_path / "out", "--cell", cell)
    assert done.code == 2
    assert why in done.err


def test_default_is_the_first_method_on_all_images(finished: Study) -> None:
    about = json.loads((beside(finished, "out") / "provenance.json").read_text())
    assert about["cell"] == f"probes[supplied]/{CELL}"
    done = finished.cli(
        "predict", beside(finished, "scans"), "--workdir", finished.work, "--json", "--cluster", "inline", *SETTINGS
    )
    assert done.code == 0, done.err
    assert done.json["cell"] == about["cell"]
    assert done.json["images"] == sum(done.json["predicted"].values()) == 6


def test_lines_hold_what_the_table_holds(finished: Study) -> None:
    out = beside(finished, "out")
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    training = {row.image_id: row.label for row in rows_of(finished) if row.split is Split.TRAIN}
    for row, line in zip(table(out / "predictions.csv"), lines, strict=True):
        assert (row["image_id"], row["predicted"]) == (line["image_id"], line["predicted"])
        assert line["predicted"] == max(line["probabilities"], key=line["probabilities"].get)
        assert float(row["probability"]) == line["probability"] == max(line["probabilities"].values())
        assert 1 / 3 <= float(row["calibrated"]) == line["calibrated"] <= 1
        assert 0 < float(row["mask_area"]) == line["mask_area"] < 1
        assert [n["image_id"] for n in line["nearest"]] == [row[f"nearest_{i}"] for i in (1, 2, 3)]
        assert all(training[n["image_id"]] == n["label"] for n in line["nearest"])
        assert row["unlike"] == str(int(line["unlike"]))
        assert line["unlike"] == (line["distance"] > line["threshold"])


def rows_of(study: Study):
    paths = DatasetPaths(study.dataset)
    return [row for drop in load_drops(paths) for row in load_rows(paths, drop)]


def test_pictures_show_every_image_with_its_answer(finished: Study) -> None:
    assert is_export(beside(finished, "pictures"))
    pictures = sorted(beside(finished, "pictures").glob("*.png"))
    assert [picture.stem for picture in pictures] == sorted(of_the_study(finished, CELL))
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.size == (512, picture_height(512, 2))


def test_no_name_of_a_source_leaves_drops(finished: Study) -> None:
    predictions = finished.dataset / "predictions"
    found = [*beside(finished, "out").iterdir(), *(f for f in predictions.rglob("*") if f.is_file())]
    names = (b"scan-", b"scans", str(finished.source.parent).encode())
    holders = {
        file.relative_to(file.parents[1]).parts[0] for file in found if any(n in file.read_bytes() for n in names)
    }
    assert holders == {"drop-001"}
    for file in (predictions / "drops" / "drop-001").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(predictions.stat().st_mode) == 0o700


def test_predictions_are_no_data_set_and_leave_the_study_alone(finished: Study) -> None:
    done = finished.run("--json", "--stage", "probes", settings=SETTINGS)
    assert done.code == 0, done.err
    assert done.json["committed"] == {}


def test_picture_unlike_any_is_flagged_and_test_images_are_not(study: Study, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    Image.fromarray(
        np.stack([np.tile(ramp, (256, 1)), np.tile(ramp[:, None], 256), np.full((256, 256), 90)], -1).astype(np.uint8)
    ).save(odd / "gradient.png")
    Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(odd / "noise.png")
    done = predict(study, odd, tmp_path / "out", "--cell", "original-100-0")
    assert done.code == 0, done.err
    assert [row["unlike"] for row in table(tmp_path / "out" / "predictions.csv")] == ["1", "1"]
    assert "Unlike the training images of the study: 2 of 2." in done.out
    assert sum(row["unlike"] == "1" for row in table(beside(finished_of(study), "out") / "predictions.csv")) <= 1


def test_withdrawn_image_gets_no_answer(study: Study, tmp_path: Path) -> None:
    gone = next(row.image_id for row in rows_of(study) if row.split is Split.TEST)
    assert study.cli("withdraw", "--image", gone, "--reason", "revoked", "--workdir", study.work).code == 0
    assert study.run("--stage", "probes", settings=SETTINGS).code == 0
    done = predict(study, beside(finished_of(study), "scans"), tmp_path / "out", "--cell", CELL)
    assert done.code == 3
    row = next(row for row in table(tmp_path / "out" / "predictions.csv") if row["image_id"] == gone)
    assert (row["status"], row["reason"], row["predicted"]) == ("failed", "withdrawn", "")


def test_gc_after_a_withdrawal_removes_pixels_and_predictions(study: Study, tmp_path: Path) -> None:
    gone = next(row.image_id for row in rows_of(study) if row.split is Split.TEST)
    scans = beside(finished_of(study), "scans")
    assert study.cli("predict", scans, "--workdir", study.work, "--cluster", "inline", *SETTINGS).code == 0
    (told_before,) = (study.dataset / "predictions" / "reports").iterdir()
    assert study.cli("withdraw", "--image", gone, "--reason", "revoked", "--workdir", study.work).code == 0
    listed = study.cli("gc", "--workdir", study.work)
    assert f"predictions/reports/{told_before.name}" in listed.out
    assert study.cli("gc", "--delete", "--workdir", study.work).code == 0
    assert not told_before.exists()
    assert list((study.dataset / "predictions" / "calibrations").iterdir()) == []
    assert "predictions/" not in study.cli("gc", "--workdir", study.work).out


def ingested_and_killed(study: Study, scans: Path) -> None:
    """What a `predict` leaves that was killed just after its drop was written."""
    paths = DatasetPaths(study.dataset)
    shutil.rmtree(paths.predictions.root)
    reading = load_drops(paths)[-1].reading
    ingest(paths.predictions, scans, IngestOptions(dataset="phantoms", labelled=False, reading=reading))


def test_images_are_read_from_the_folder_that_is_named(study: Study, tmp_path: Path) -> None:
    first = copy_source(beside(finished_of(study), "scans"), tmp_path / "first")
    ingested_and_killed(study, first)
    second = tmp_path / "second"
    first.rename(second)
    first.mkdir()
    (second / "scan-0.png").rename(second / "other.png")
    (second / "scan-0_mask.png").rename(second / "other_mask.png")
    assert predict(study, second, tmp_path / "out", "--cell", CELL, "--overlay", tmp_path / "pictures").code == 0
    assert_same(told(tmp_path / "out"), told(beside(finished_of(study), "out")))
    assert {row["mask_status"] for row in table(tmp_path / "out" / "predictions.csv")} == {"ok"}
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6


def test_image_whose_file_was_away_is_tried_again_once_it_is_back(study: Study, tmp_path: Path) -> None:
    scans, part = copy_source(beside(finished_of(study), "scans"), tmp_path / "scans"), tmp_path / "part"
    ingested_and_killed(study, scans)
    part.mkdir()
    for name in ("scan-0.png", "scan-0_mask.png"):
        (scans / name).rename(part / name)
    assert predict(study, scans, tmp_path / "without", "--cell", CELL).code == 0
    assert len(told(tmp_path / "without")) == 5
    assert predict(study, part, tmp_path / "alone", "--cell", CELL).code == 0
    for name in ("scan-0.png", "scan-0_mask.png"):
        (part / name).rename(scans / name)
    assert predict(study, scans, tmp_path / "out", "--cell", CELL).code == 0
    assert_same(told(tmp_path / "out"), told(beside(finished_of(study), "out")))
    runs = list((study.dataset / "predictions" / "runs").iterdir())
    assert len(runs) == 2, "nothing is left to compute when all are back"
