"""What plan, status and explain say of a study: reasons, sizes, times, and the way from a source file to its score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import zarr

from manifests.drops import load_drops, load_rows
from manifests.layout import DatasetPaths
from manifests.types import ImageRow, Split
from tests.conftest import Cli
from tests.integration.pipelines import QUICK, copy_source
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("overview")
    study = Study(cli, root / "work", copy_source(phantom_folder, root / "source"))
    broken = study.source / "images" / "train" / "round" / "000.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert study.ingest("--chunk-items", 4).code == 0
    assert study.run().code == 3
    return study


@pytest.fixture
def study(finished: Study, tmp_path: Path) -> Study:
    shutil.copytree(finished.work, tmp_path / "work")
    return Study(finished.cli, tmp_path / "work", finished.source)


def ask(study: Study, command: str, *arguments: object, settings: tuple[str, ...] = QUICK):
    done = study.cli(command, "--workdir", study.work, *settings, *arguments)
    assert done.code == 0, done.err
    return done


def plan(study: Study, *more: str) -> dict[str, dict]:
    return {row["stage"]: row for row in ask(study, "plan", "--json", *more).json}


def rows_of(study: Study) -> tuple[ImageRow, ...]:
    paths = DatasetPaths(study.dataset)
    return tuple(row for drop in load_drops(paths) for row in load_rows(paths, drop))


def test_plan_of_a_finished_study_is_empty(finished: Study) -> None:
    assert {row["units"] for row in plan(finished).values()} == {0}
    assert "Nothing to do" in ask(finished, "plan").out


def test_plan_says_which_setting_changed_and_what_follows(finished: Study) -> None:
    rows = plan(finished, "--set", "masks.compositing=crop", "--set", "embeddings.views=['original','crop']")
    masks = rows["masks[supplied]"]
    assert masks["reasons"] == {'settings changed: compositing was "masked", is "crop"': 5}
    assert masks["drops"] == {"drop-001": 5}
    why = rows["embeddings[supplied]"]["why"]
    assert "settings changed: compositing was" in why
    assert "upstream changed: masks" in why
    assert masks["bytes"] > 1000
    assert masks["seconds"] > 0
    assert rows["fusion[supplied]"]["units"] is None


def test_plan_forecasts_what_such_units_wrote_and_took(finished: Study) -> None:
    shards = sum(f.stat().st_size for f in (finished.dataset / "stages" / "masks").rglob("c.*"))
    masks = plan(finished, "--set", "masks.compositing=crop")["masks[supplied]"]
    assert masks["bytes"] == pytest.approx(shards, rel=0.01)
    said = ask(finished, "plan", "--set", "masks.compositing=crop").out
    assert "after past runs" in said


def test_plan_of_what_never_ran_gives_the_size_before_compression(finished: Study, tmp_path: Path) -> None:
    fresh = Study(finished.cli, tmp_path / "work", finished.source)
    assert fresh.ingest("--chunk-items", 4).code == 0
    rows = plan(fresh)
    for stage in ("masks", "embeddings"):
        store = next((finished.dataset / "stages" / stage).glob("*/drop-001/data.zarr"))
        arrays = [array for _, array in zarr.open_group(store, mode="r").arrays()]
        a_row = sum(array.nbytes // array.shape[0] for array in arrays)
        assert rows[f"{stage}[supplied]"]["bytes"] == 5 * 4 * a_row


def test_new_drop_is_new_alone_and_changes_the_data_of_the_cells(study: Study, tmp_path: Path) -> None:
    from pipeline.phantoms import make_phantoms

    make_phantoms(tmp_path / "more", {"train": 2, "test": 1}, seed=99)
    labels = tmp_path / "more" / "labels.csv"
    added = study.cli("ingest", tmp_path / "more", "--dataset", "phantoms", "--labels", labels, "--workdir", study.work)
    assert added.code == 0, added.err
    rows = plan(study)
    assert (rows["masks[supplied]"]["reasons"], rows["masks[supplied]"]["drops"]) == ({"new": 1}, {"drop-002": 1})
    study.run("--stage", "embeddings")
    assert plan(study)["fusion[supplied]"]["why"].startswith("data changed: images arrived")


def test_retired_unit_and_what_was_made_of_it(study: Study) -> None:
    file = next((study.dataset / "stages" / "masks").glob("*/drop-001/data.zarr/mask/c.2.*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    study.cli("repair", "--workdir", study.work, *QUICK)
    rows = plan(study)
    assert rows["masks[supplied]"]["reasons"] == {"retired": 1}
    assert rows["embeddings[supplied]"]["reasons"] == {"upstream changed": 1}


def test_unit_that_failed_for_good_says_why(study: Study) -> None:
    run = max((study.dataset / "runs").iterdir())
    shutil.rmtree(next((study.dataset / "stages" / "texts").glob("*/commits")))
    event = {"event": "failed", "time": "", "unit": "texts/bank-100-0", "cause": "MemoryError: too much"}
    unit = next(iter(json.loads(line)["unit"] for line in events_of(run) if '"texts/' in line))
    with (run / "events.jsonl").open("a") as stream:
        stream.write(json.dumps({**event, "unit": unit}) + "\n")
    assert plan(study)["texts"]["reasons"] == {"failed: MemoryError: too much": 1}
    status = {row["stage"]: row for row in ask(study, "status", "--json").json}
    assert status["texts"]["failed_units"] == {unit: "MemoryError: too much"}


def events_of(run: Path) -> list[str]:
    return (run / "events.jsonl").read_text().splitlines()


def test_status_tells_drops_apart(finished: Study) -> None:
    rows = {(row["stage"], row["drop"]): row for row in ask(finished, "status", "--json").json}
    masks = rows["masks[supplied]", "drop-001"]
    assert (masks["committed"], masks["units"], masks["pending"]) == (5, 5, 0)
    assert masks["images"] == {"ok": 17, "failed": 1}
    assert masks["reasons"] == {"decode.truncated": 1}
    assert rows["probes[supplied]", ""]["committed"] == 16


def test_explain_follows_a_test_image_from_its_file_to_every_answer(finished: Study) -> None:
    row = next(row for row in rows_of(finished) if row.split is Split.TEST)
    told = ask(finished, "explain", row.image_id[:10], "--json").json
    assert (told["kind"], told["image"], told["rows"][0]["file"]) == ("image", row.image_id, row.path)
    assert [s["status"] for s in told["stages"]] == ["ok", "ok"]
    runs = {run.name for run in (finished.dataset / "runs").iterdir()}
    assert {s["run"] for s in told["stages"]} <= runs
    tested = [cell for cell in told["cells"] if cell["stage"] == "probes[supplied]"]
    assert len(tested) == 16
    assert all(cell["role"] == "test" and cell["predicted"] for cell in tested)
    by_path = ask(finished, "explain", row.path).out
    assert f"image {row.image_id}" in by_path


def test_explain_tells_where_an_image_was_trained_on(finished: Study) -> None:
    row = next(r for r in rows_of(finished) if r.split is Split.TRAIN and not r.path.endswith("round/000.png"))
    cells = ask(finished, "explain", row.image_id, "--json").json["cells"]
    whole = [cell for cell in cells if cell["training"] == "100 %"]
    assert len(whole) == 8
    assert {cell["role"] for cell in cells} == {"train"}
    half = {cell["seed"] for cell in cells if cell["training"] == "50 %"}
    assert len([c for c in cells if c["training"] == "50 %"]) == 4 * len(half), "every method sees the same subset"


def test_explain_names_the_reason_of_a_failure(finished: Study) -> None:
    row = next(r for r in rows_of(finished) if r.path.endswith("train/round/000.png"))
    told = ask(finished, "explain", row.image_id, "--json").json
    assert [(s["status"], s["reason"]) for s in told["stages"]] == [
        ("failed", "decode.truncated"),
        ("failed", "upstream.failed"),
    ]


def test_explain_shows_a_chunk_and_a_cell(finished: Study) -> None:
    chunk = ask(finished, "explain", "drop-001/2", "--json").json
    assert (chunk["chunk"], chunk["rows"], len(chunk["images"])) == ("drop-001/000002", [8, 12], 4)
    assert [s["stage"] for s in chunk["stages"]] == ["masks[supplied]", "embeddings[supplied]"]
    cell = ask(finished, "explain", "medfocus-50-1", "--json").json
    fusion, probe = cell["results"]
    assert (fusion["stage"], probe["stage"]) == ("fusion[supplied]", "probes[supplied]")
    assert probe["scores"]["n_test"] == 6
    assert probe["drops"] == ["drop-001"]
    assert "scores.accuracy" in ask(finished, "explain", "medfocus-50-1").out
    assert "rows 8 to 11" in ask(finished, "explain", "drop-001/000002").out


def test_explain_of_nothing_says_what_can_be_asked(finished: Study) -> None:
    done = finished.cli("explain", "nothing", "--workdir", finished.work, *QUICK)
    assert done.code == 4
    assert "drop-001/000003" in done.err
