"""The report shows what is committed, all of it, and nothing else; whatever is missing is said."""

from __future__ import annotations

import csv
import shlex
import shutil
from pathlib import Path

import pytest

import pipeline.committed
from manifests.errors import DamagedError, InventoryError
from manifests.types import Status
from pipeline.commands import do_report
from pipeline.committed import look_up
from pipeline.config import load_config
from pipeline.plan import plan_map
from pipeline.report_sources import report_sources
from pipeline.results import build_report, report_command, report_data
from pipeline.workspace import Workspace
from stages.report.comparison import compare
from tests.integration.pipelines import add_row, copy_source
from tests.unit.pipeline.committed_study import commit_chunks, complete, everything, ingested, reopened

FIRST = ("masks[supplied]", "embeddings[supplied]", "texts", "fusion[supplied]", "probes[supplied]")


@pytest.fixture
def study(tmp_path: Path, phantom_folder: Path) -> Workspace:
    """Both policies complete, and a source of their own."""
    return complete(ingested(tmp_path, copy_source(phantom_folder, tmp_path / "source")))


@pytest.fixture(scope="module")
def shown(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """Such a study with its report, and the page; for tests that only look."""
    workspace = complete(ingested(tmp_path_factory.mktemp("shown"), phantom_folder))
    return workspace, build_report(workspace).page


@pytest.fixture
def whole(shown: tuple[Workspace, Path]) -> Workspace:
    """That study as another process sees it."""
    return reopened(shown[0])


def source_of(workspace: Workspace) -> Path:
    return Path(workspace.drops[0].source_root)


def text_of(workspace: Workspace) -> str:
    return build_report(workspace).page.read_text("utf-8")


def folder_of(workspace: Workspace) -> Path:
    """Where the report of what is committed lies or would lie, without drawing it."""
    return workspace.paths.report(report_data(workspace).fingerprint)


def test_missing_source_file_leaves_its_picture_without_the_original(study: Workspace) -> None:
    row = next(r for r in study.rows("drop-001") if r.split == "test")
    (source_of(study) / row.path).unlink()
    data = report_data(study)
    without = {item.caption for item in data.gallery if item.image is None}
    assert without == {row.image_id}
    assert data.unreadable == {"file.missing": 2}
    html = text_of(study)
    assert "2 of 12 pictures are shown without the original image" in html
    assert html.count("source file not readable") == 2


def test_source_that_is_gone_does_not_end_the_report(study: Workspace) -> None:
    source_of(study).rename(study.paths.root.parent / "elsewhere")
    assert "12 of 12 pictures are shown without the original" in text_of(study)


def test_page_with_originals_is_another_report_than_the_one_without(study: Workspace) -> None:
    moved = source_of(study).rename(study.paths.root.parent / "elsewhere")
    without = folder_of(study)
    mounted = build_report(reopened(study, source=moved)).page
    assert mounted.parent != without
    assert "without the original image" not in mounted.read_text("utf-8")


def test_same_content_is_the_same_folder_and_not_drawn_again(shown: tuple[Workspace, Path]) -> None:
    study, page = shown
    before = page.stat().st_mtime_ns, page.read_bytes()
    again = build_report(reopened(study)).page
    assert again == page
    assert again.parent == folder_of(reopened(study))
    assert (again.stat().st_mtime_ns, again.read_bytes()) == before


def test_mended_code_that_gathers_a_report_makes_another(
    shown: tuple[Workspace, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, page = shown
    sources = [Path(str(file)) for file in report_sources()]
    monkeypatch.setattr("pipeline.results.report_sources", lambda: sources[1:])
    assert folder_of(reopened(study)) != page.parent


@pytest.mark.parametrize(
    "setting",
    ["study.seeds=[0]", "study.fractions=[1.0]", 'probes.methods=["medfocus", "constant"]', "masks.compare=[]"],
)
def test_fewer_cells_shown_are_another_report(shown: tuple[Workspace, Path], setting: str) -> None:
    study, page = shown
    assert folder_of(reopened(study, setting)) != page.parent


def test_other_scores_alone_are_another_report(tmp_path: Path, phantom_folder: Path) -> None:
    def folder(name: str, correct: int) -> str:
        return folder_of(complete(ingested(tmp_path / name, phantom_folder), correct=correct)).name

    first = folder("first", 3)
    assert folder("again", 3) == first
    assert folder("other", 4) != first


def test_page_of_another_layout_is_another_report(
    shown: tuple[Workspace, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, page = shown
    monkeypatch.setattr("pipeline.results.layout_digest", lambda _sources: "0" * 64)
    assert folder_of(study) != page.parent


def test_policy_that_has_not_run_is_named_and_makes_no_store(tmp_path: Path, phantom_folder: Path) -> None:
    workspace = complete(ingested(tmp_path, phantom_folder), *FIRST)
    before = everything(workspace)
    data = report_data(workspace)
    assert data.incomplete == {"none": "5 of 5 chunks of masks, 5 of 5 chunks of embeddings"}
    assert set(data.ledger["mask"]) == {"supplied"} == {item.policy for item in data.gallery}
    assert everything(workspace) == before
    assert "Mask policy none is not complete; 5 of 5 chunks of masks" in text_of(workspace)


def test_partly_run_policy_is_left_out_of_ledger_and_gallery(tmp_path: Path, phantom_folder: Path) -> None:
    workspace = complete(ingested(tmp_path, phantom_folder), *FIRST)
    commit_chunks(workspace, workspace.nodes["masks[none]"], only=(0, 3))
    data = report_data(reopened(workspace))
    assert data.incomplete["none"].startswith("3 of 5 chunks of masks")
    assert set(data.ledger["mask"]) == {"supplied"} == {item.policy for item in data.gallery}


def test_missing_cells_of_a_policy_are_counted(study: Workspace) -> None:
    more = reopened(study, "study.seeds=[0, 1, 2]")
    complete(more, "fusion[supplied]", "fusion[none]")
    assert report_data(more).incomplete == {"supplied": "8 of 24 cells of probes", "none": "4 of 12 cells of probes"}


def test_without_any_score_the_next_step_is_named(tmp_path: Path, phantom_folder: Path) -> None:
    with pytest.raises(InventoryError, match="no scores under this configuration") as raised:
        report_data(ingested(tmp_path, phantom_folder))
    assert "pipeline run" in raised.value.fix


def test_policies_come_as_configured_and_methods_in_their_order(whole: Workspace) -> None:
    data = report_data(whole)
    pairs = list(dict.fromkeys(zip(data.scores["mask"], data.scores["method"], strict=True)))
    supplied = [("supplied", "medfocus"), ("supplied", "masked"), ("", "original"), ("", "constant")]
    assert pairs == [*supplied, ("none", "medfocus"), ("none", "masked")]
    assert list(dict.fromkeys(data.ledger["mask"])) == ["supplied", "none"]
    html = text_of(whole)
    assert html.index("<td>supplied</td>") < html.index("<td>none</td>")


def test_baselines_that_were_run_stand_beside_the_probes(study: Workspace) -> None:
    assert "zero-shot" not in set(report_data(study).scores["method"])
    complete(study, "baselines", correct=4)
    scores = report_data(reopened(study)).scores
    rows = scores[scores["method"] == "zero-shot"]
    assert list(rows["mask"].unique()) == [""]
    assert len(rows) == 4
    assert (rows["correct"] == 4).all()
    masked = complete(reopened(study, "baselines.view=masked"), "baselines")
    scores = report_data(reopened(masked, "baselines.view=masked")).scores
    assert set(scores.loc[scores["method"] == "coop", "mask"]) == {"supplied"}


def test_ledger_counts_every_image_once_a_policy(whole: Workspace) -> None:
    ledger = report_data(whole).ledger
    assert ledger.groupby("mask")["n"].sum().to_dict() == {"supplied": 18, "none": 18}
    assert (ledger["ok"] + ledger["fallback"] + ledger["failed"] == ledger["n"]).all()
    supplied = ledger[ledger["mask"] == "supplied"]
    assert supplied["split"].tolist() == ["train"] * 3 + ["test"] * 3
    assert supplied["mean_area"].between(0.01, 0.5).all()


def test_failed_image_is_in_the_table_and_in_no_picture(tmp_path: Path, phantom_folder: Path) -> None:
    source = copy_source(phantom_folder, tmp_path / "source")
    workspace = ingested(tmp_path, source)
    row = next(r for r in workspace.rows("drop-001") if r.split == "test")
    (source / row.path).unlink()
    data = report_data(complete(workspace))
    rows = data.failures[data.failures["reason"] == "file.missing"]
    assert rows[["stage", "n"]].to_numpy().tolist() == [["masks[supplied]", 1], ["masks[none]", 1]]
    assert set(rows["status"]) == {Status.FAILED.name.lower()}
    assert row.image_id not in {item.caption for item in data.gallery}


def test_altered_scores_are_refused(study: Workspace) -> None:
    file = next((study.paths.root / "stages" / "probes").rglob("scores.json"))
    file.write_text(file.read_text().replace('"correct": 3', '"correct": 6'))
    with pytest.raises(DamagedError, match=r"scores\.json is missing or not what was committed"):
        report_data(study)


def test_class_name_that_a_table_program_would_misread_is_a_prediction(whole: Workspace) -> None:
    assert pipeline.committed.plain_name("'=round") == "=round"
    assert pipeline.committed.plain_name("NA") == "NA"
    right = [item.predicted == item.label for item in report_data(whole).gallery]
    assert {item.predicted for item in report_data(whole).gallery} == set(whole.classes)
    assert any(right)
    assert not all(right)


def test_copies_of_a_test_image_are_compared_as_images_of_their_own(phantom_folder: Path, tmp_path: Path) -> None:
    source = copy_source(phantom_folder, tmp_path / "source")
    with (source / "labels.csv").open() as file:
        known = next(row for row in csv.DictReader(file) if row["split"] == "test")
    copy = source / f"copy{Path(known['file']).suffix}"
    shutil.copy(source / known["file"], copy)
    add_row(source, copy, known["label"], "test", known["mask"])
    answers = report_data(complete(ingested(tmp_path / "work", source))).answers
    assert not answers.duplicated(["mask", "method", "training", "seed", "image"]).any()
    compared = compare(answers)
    assert set(compared["n"]) == {7}


def test_every_node_is_planned_once_a_report(whole: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def counting(workspace: Workspace, node: object) -> object:
        planned.append(node)
        return plan_map(workspace, node)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.committed.plan_map", counting)
    report_data(whole)
    assert len(planned) == 4
    assert look_up(whole).incomplete == {}


def test_drop_that_came_after_the_run_is_not_in_its_report(study: Workspace) -> None:
    image = source_of(study) / "images" / "train" / "round" / "000.png"
    image.write_bytes(image.read_bytes() + b"more")
    later = ingested(study.paths.root.parent, source_of(study))
    assert [drop.drop_id for drop in later.drops] == ["drop-001", "drop-002"]
    shown = report_data(Workspace(study.paths, study.config, None, ("drop-001",)))
    assert [drop["id"] for drop in shown.drops] == ["drop-001"]
    with pytest.raises(InventoryError, match="no scores"):
        report_data(later)


def test_command_on_the_page_gives_the_same_configuration(whole: Workspace) -> None:
    config = load_config(overrides=("masks.policy=top1", "study.seeds=[3]", "cluster.workers=2"))
    words = shlex.split(report_command(Workspace(whole.paths, config)))
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert words[:4] == ["pipeline", "report", "--dataset", "phantoms"]
    assert load_config(overrides=overrides, preset=words[5]).model_dump(exclude={"cluster"}) == config.model_dump(
        exclude={"cluster"}
    )
    assert not any("workers" in word for word in words)


def test_terminal_shows_scores_with_and_without_flagged_images(
    tmp_path: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = do_report(complete(ingested(tmp_path, phantom_folder), flagged=2))
    whole, clean = capsys.readouterr().out.split("The same without the 2 flagged test images")
    assert "50.0 ± 0.0 (6/12)" in whole
    assert "25.0 ± 0.0 (2/8)" in clean
    assert clean.rstrip().endswith(f"Report: {page}")
    assert "Without the 2 flagged test images" in page.read_text("utf-8")


def test_clean_test_set_has_one_table_on_the_terminal(whole: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    do_report(whole)
    assert "flagged" not in capsys.readouterr().out


def test_quiet_report_prints_nothing(whole: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert do_report(whole, quiet=True).is_file()
    assert capsys.readouterr().out == ""
