"""Withdrawn images leave every later result, and nothing of them is left in the work folder but ids and paths."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from manifests.commits import read_commit, read_rows
from manifests.drops import load_drops, load_looks, load_rows
from manifests.layout import DatasetPaths
from manifests.store import StageStore
from manifests.types import ImageRow, Split, Status
from tests.conftest import Cli
from tests.integration.pipelines import QUICK, committed, copy_source, digests
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

STAGES = ("masks", "embeddings")


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def whole(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A quick study with its report, of images each of a patient of its own but for two."""
    root = tmp_path_factory.mktemp("withdraw")
    source = copy_source(phantom_folder, root / "source")
    rows = table(source / "labels.csv")
    for number, row in enumerate(rows):
        row["group"] = f"patient {number // 2}"
    with (source / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    study = Study(cli, root / "work", source)
    assert study.ingest("--chunk-items", 4, "--columns", "label=label,split=split,group=group,mask=mask").code == 0
    assert study.run().code == 0
    return study


@pytest.fixture
def study(whole: Study, tmp_path: Path) -> Study:
    shutil.copytree(whole.work, tmp_path / "work")
    return Study(whole.cli, tmp_path / "work", whole.source)


def rows_of(study: Study) -> tuple[ImageRow, ...]:
    paths = DatasetPaths(study.dataset)
    return tuple(row for drop in load_drops(paths) for row in load_rows(paths, drop))


def call(study: Study, command: str, *arguments: object):
    return study.cli(command, "--workdir", study.work, "--dataset", "phantoms", *arguments)


def some(study: Study, split: Split) -> ImageRow:
    return next(row for row in rows_of(study) if row.split is split)


def arrays_of(study: Study, stage: str) -> dict[str, np.ndarray]:
    root = next((study.dataset / "stages" / stage).glob("*/drop-001"))
    store, (drop,) = StageStore.load(root), load_drops(DatasetPaths(study.dataset))
    parts = [read_rows(store, chunk) for chunk in drop.chunks()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def predicted_ids(study: Study) -> set[str]:
    found: set[str] = set()
    for file in (study.dataset / "stages").rglob("predictions.csv"):
        if "retired" not in file.parts:
            found |= {line["image_id"] for line in table(file)}
    return found


def test_withdrawn_test_image_leaves_scores_store_report_and_thumbnails(study: Study) -> None:
    before, gone = digests(study.dataset), some(study, Split.TEST)
    masks_before = arrays_of(study, "masks")
    done = call(study, "withdraw", "--image", gone.image_id[:8], "--reason", "consent revoked")
    assert done.code == 0, done.err
    planned = {line["stage"]: line for line in call(study, "plan", "--json", *QUICK).json}
    assert (planned["masks[supplied]"]["units"], planned["masks[supplied]"]["why"]) == (1, "withdrawn")
    listed = call(study, "gc", "--json").json
    assert (listed["deleted"], len(listed["withdrawn"]) > 4) == (False, True)
    assert digests(study.dataset) == before, "gc without --delete deletes nothing"

    assert call(study, "gc", "--delete").code == 0
    assert not [f for f in study.dataset.rglob("c.*") if f.parent.name == "masked_image" and holds_row(f, gone)]
    assert not list((study.dataset / "reports").glob("*"))
    assert gone.image_id not in predicted_ids(study)
    assert call(study, "gc", "--json").json["withdrawn"] == []
    (drop,) = load_drops(DatasetPaths(study.dataset))
    looks = load_looks(DatasetPaths(study.dataset), drop)
    assert looks is not None
    assert (not looks.seen[gone.row], looks.thumbnails[gone.row].max(), int(looks.seen.sum())) == (True, 0, 17)

    again = study.run("--json")
    assert again.code == 0, "what was withdrawn is no failure"
    assert gone.image_id not in predicted_ids(study)
    for stage in STAGES:
        arrays = arrays_of(study, stage)
        assert arrays["status"][gone.row] == Status.FAILED
        assert (np.delete(arrays["status"], gone.row) != Status.FAILED).all()
    masks = arrays_of(study, "masks")
    assert not masks["masked_image"][gone.row].any()
    for name, array in masks.items():
        kept, had = np.delete(array, gone.row, 0), np.delete(masks_before[name], gone.row, 0)
        assert np.array_equal(kept, had, equal_nan=array.dtype.kind == "f"), name
    scores = [json.loads(f.read_text()) for f in (study.dataset / "stages").rglob("scores.json")]
    assert {score["n_test"] for score in scores} == {5}
    assert {score["n_test_failed"] for score in scores} == {0}
    assert call(study, "verify").code == 0
    assert study.run().code == 0
    assert committed(study.dataset) == []


def holds_row(shard: Path, row: ImageRow) -> bool:
    """Whether a shard of chunks of four rows is that of a row."""
    return shard.name.split(".")[1] == str(row.row // 4)


def test_withdrawn_patient_takes_all_images_and_training_goes_on_without_them(study: Study) -> None:
    first = some(study, Split.TRAIN)
    same = {row.image_id for row in rows_of(study) if row.group_id == first.group_id}
    (name,) = {f"patient {n}" for n in range(9) if image_of(study, f"patient {n}") & {first.path}}
    done = call(study, "withdraw", "--patient", name, "--reason", "consent revoked", "--json")
    assert done.code == 0, done.err
    assert set(done.json["image_ids"]) == same
    assert len(same) == 2
    assert name not in "".join(f.read_text() for f in (study.dataset / "withdrawals").iterdir())
    assert study.run().code == 0
    trained = {json.loads(f.read_text())["n_train"] for f in newest_scores(study, "original-100-0")}
    assert trained == {10}


def newest_scores(study: Study, unit: str) -> list[Path]:
    """Scores of a unit in the cells that heed all withdrawals."""
    found = []
    for file in (study.dataset / "stages").rglob(f"commits/{unit}/scores.json"):
        commit = read_commit(file.parents[2], unit)
        assert commit is not None
        if commit.record["withdrawals"]:
            found.append(file)
    return found


def image_of(study: Study, patient: str) -> set[str]:
    return {row["file"] for row in table(study.source / "labels.csv") if row["group"] == patient}


def test_withdrawn_drop_is_gone_and_an_ingest_does_not_bring_it_back(study: Study, tmp_path: Path) -> None:
    more = tmp_path / "more"
    from pipeline.phantoms import make_phantoms

    make_phantoms(more, {"train": 2, "test": 1}, seed=99)
    done = study.cli("ingest", more, "--dataset", "phantoms", "--labels", more / "labels.csv", "--workdir", study.work)
    assert done.code == 0, done.err
    assert study.run().code == 0
    assert call(study, "withdraw", "--drop", "drop-002", "--reason", "wrong scanner").code == 0
    assert call(study, "gc", "--delete").code == 0
    assert not list((study.dataset / "stages").glob("*/*/drop-002"))
    listed = call(study, "drops", "--json").json
    assert [(d["drop"], d["withdrawn"]) for d in listed["drops"]] == [("drop-001", 0), ("drop-002", 9)]
    assert listed["withdrawals"][0]["reason"] == "wrong scanner"
    again = study.cli("ingest", more, "--dataset", "phantoms", "--labels", more / "labels.csv", "--workdir", study.work)
    assert again.code == 0
    assert "Nothing new: 9 images are known already." in again.out
    assert "vanished" not in again.out
    done = study.run()
    assert done.code == 0, done.err
    scores = [json.loads(f.read_text()) for f in (study.dataset / "stages").rglob("scores.json")]
    assert {score["n_test"] for score in scores} == {6}


def test_killed_gc_is_finished_by_the_next(study: Study) -> None:
    gone = some(study, Split.TEST)
    call(study, "withdraw", "--image", gone.image_id, "--reason", "x")
    report = next((study.dataset / "reports").iterdir())
    report.rename(report.with_name(".gc-0123"))
    told = call(study, "gc", "--json").json["withdrawn"]
    assert any("half deleted" in trace["what"] for trace in told)
    assert call(study, "gc", "--delete").code == 0
    assert not list((study.dataset / "reports").iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "--image"),
        (("--image", "ffff0000"), 4, "ffff0000"),
        (("--drop", "drop-009"), 4, "drop-001"),
        (("--patient", "nobody"), 4, "group column"),
        (("--image", "abcd", "--drop", "drop-001"), 2, "--drop"),
    ],
)
def test_withdrawal_of_what_is_not_there_is_refused(study: Study, arguments, code, said) -> None:
    done = call(study, "withdraw", "--reason", "x", *arguments)
    assert (done.code, said in done.err, "Traceback" in done.err) == (code, True, False)
    assert not (study.dataset / "withdrawals").exists()


def test_damaged_withdrawal_is_refused_because_the_images_would_return(study: Study) -> None:
    call(study, "withdraw", "--image", some(study, Split.TEST).image_id, "--reason", "x")
    (file,) = (study.dataset / "withdrawals").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    done = study.run()
    assert (done.code, "would return" in done.err) == (4, True)


def test_all_images_withdrawn_leave_nothing_to_run(study: Study) -> None:
    assert call(study, "withdraw", "--drop", "drop-001", "--reason", "x").code == 0
    done = study.run()
    assert (done.code, "not withdrawn" in done.err) == (4, True)
