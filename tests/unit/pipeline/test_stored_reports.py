"""Which report a name means, what is said where it means none, and what of two reports' inputs differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import InventoryError, UsageError
from manifests.events import REPORTED, EventLog
from manifests.forgetting import find_traces
from manifests.layout import DatasetPaths
from manifests.runs import finish_run, start_run
from manifests.withdrawals import Withdrawal
from pipeline.comparing import compare_reports
from pipeline.origins import lost_runs, origins
from pipeline.stored_reports import StoredReport, find_report, load_reports
from stages.report.kept import KEPT, Kept
from tests.unit.stages.test_changes import frame, kept, one

FIRST, SECOND = "0123456789ab", "0199999999ab"
RUN_A, RUN_B = "20260101T000000Z-aaaa", "20260102T000000Z-bbbb"


def stage(node: str = "masks[union]", **changed: Any) -> dict[str, Any]:
    told = {"node": node, "stage": node.partition("[")[0], "version": 1, "fingerprint": "0" * 64, "settings": {}}
    return {**told, "weights": {}, "upstream": {}, "inputs": {}, "units": 1, "runs": [RUN_A], **changed}


def provenance(*stages: dict[str, Any], **changed: Any) -> dict[str, Any]:
    drops = [{"id": "drop-001", "n_items": 9, "inventory_sha256": "ab", "created": "2026-01-01T00:00:00+00:00"}]
    told = {"dataset": "mine", "command": "pipeline report", "created": "2026-01-01T00:00:00+00:00", "drops": drops}
    return {**told, "withdrawals": [], "stages": list(stages), **changed}


def write(paths: DatasetPaths, name: str, told: dict[str, Any], answers: Kept | None = None) -> StoredReport:
    folder = paths.report(name)
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("page")
    (folder / "provenance.json").write_text(json.dumps(told))
    if answers:
        (folder / KEPT).write_bytes(answers.to_bytes())
    return StoredReport(folder, told)


def write_run(paths: DatasetPaths, run: str, report: str = "", **versions: str) -> None:
    record = start_run(paths.run(run), run, ["pipeline", "run"], {})
    same = {"git": None, "versions": {"torch": "1", **versions}, "platform": "here", "python": "3"}
    finish_run(paths.run(run), record.model_copy(update=same), "done", 0, {})
    with EventLog(paths.run(run) / "events.jsonl") as events:
        events.write("planned", node="masks", units=0)
        if report:
            events.write(REPORTED, report=report)


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    """Two reports of one data set, and the two runs that ended with them."""
    found = DatasetPaths(tmp_path / "work" / "mine")
    found.drops.mkdir(parents=True)
    write(found, FIRST, provenance(stage()), kept(one([True, False])))
    later = provenance(stage(runs=[RUN_A, RUN_B]), created="2026-01-02T00:00:00+00:00")
    write(found, SECOND, later, kept(one([True, True])))
    write_run(found, RUN_A, FIRST)
    write_run(found, RUN_B, SECOND)
    return found


@pytest.mark.parametrize("name", [FIRST, "012", RUN_A, "20260101T", "previous"])
def test_report_is_found_by_its_name_its_run_and_its_place(paths: DatasetPaths, name: str) -> None:
    assert find_report(paths, name).name == FIRST
    assert find_report(paths, "latest").name == SECOND


def test_run_that_ended_with_no_report_means_the_first_that_shows_what_it_computed(paths: DatasetPaths) -> None:
    (paths.run(RUN_B) / "events.jsonl").unlink()
    assert find_report(paths, RUN_B).name == SECOND


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("01", "'01' means 2 things: report 0123456789ab, report 0199999999ab. Write more of the name."),
        ("202601", f"means 2 things: run {RUN_A}, run {RUN_B}."),
        ("feed", f"'feed' is no report and no run of the data set 'mine'. Reports: {FIRST} (2026-01-01T00:00), "),
        ("", "'' is no report"),
        ("../x", f"Runs: {RUN_A}, {RUN_B}. Or: previous, latest."),
    ],
)
def test_name_that_means_nothing_or_much_is_refused_with_what_there_is(
    paths: DatasetPaths, name: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        find_report(paths, name)
    assert said in str(caught.value)


def test_run_without_a_report_and_a_report_that_is_gone_are_told_apart(paths: DatasetPaths) -> None:
    write_run(paths, "20260103T000000Z-cccc")
    with pytest.raises(InventoryError, match="Run 20260103T000000Z-cccc has no report: it ended with none"):
        find_report(paths, "20260103")
    (paths.report(FIRST) / "index.html").unlink()
    with pytest.raises(InventoryError, match=f"ended with report {FIRST}, which is not there any more"):
        find_report(paths, RUN_A)
    with pytest.raises(InventoryError, match="There is no previous report: the data set 'mine' has one report"):
        find_report(paths, "previous")


def test_report_without_answers_says_how_to_get_them(paths: DatasetPaths) -> None:
    (paths.report(FIRST) / KEPT).unlink()
    with pytest.raises(InventoryError, match=f"Report {FIRST} .* has no {KEPT}.*pipeline report"):
        compare_reports(paths, (FIRST, SECOND))


def test_reports_of_two_data_sets_are_refused(paths: DatasetPaths) -> None:
    other = DatasetPaths(paths.root.parent / "other")
    other.drops.mkdir(parents=True)
    write(other, "ff" * 6, provenance(dataset="other"), kept(one([True])))
    with pytest.raises(UsageError, match="'ffff' belongs to the data set 'other', and this one is 'mine'"):
        compare_reports(paths, (FIRST, "ffff"))
    write(paths, "ee" * 6, provenance(dataset="other"), kept(one([True])))
    with pytest.raises(UsageError, match="of the data set 'other'"):
        compare_reports(paths, (FIRST, "eeee"))


def test_comparison_lies_beside_the_reports_and_is_none_itself(paths: DatasetPaths) -> None:
    page, comparison = compare_reports(paths, ("previous", RUN_B))
    assert page == paths.reports / f"compare-{FIRST}-{SECOND}" / "index.html"
    assert comparison.changes.table["difference"].tolist() == [0.5]
    assert [report.name for report in load_reports(paths)] == [FIRST, SECOND]
    assert comparison.origins == {}
    assert "Nothing that went in differs, and yet answers do" in page.read_text("utf-8")


def withdraw(paths: DatasetPaths, name: str, *image_ids: str) -> None:
    record = Withdrawal(withdrawal_id=name, created="now", reason="consent revoked", image_ids=image_ids)
    paths.withdrawals.mkdir(exist_ok=True)
    (paths.withdrawals / f"{name}.json").write_text(record.model_dump_json())


def test_withdrawn_image_is_in_no_later_comparison_of_older_reports(paths: DatasetPaths) -> None:
    gone = f"{1:016x}"
    page, comparison = compare_reports(paths, (FIRST, SECOND))
    assert gone in page.read_text("utf-8")
    withdraw(paths, "w1", gone)
    page, comparison = compare_reports(paths, (FIRST, SECOND))
    assert not [file for file in page.parent.iterdir() if gone in file.read_text("utf-8")]
    row = comparison.changes.table.iloc[0]
    assert (row["n_a"], row["n_b"], row["n_common"], row["difference"]) == (1, 1, 1, 0)
    (caution,) = comparison.warnings
    assert caution.endswith("accuracies can differ from the report's own: 1 of A and 1 of B.")


def test_all_copies_of_a_withdrawn_image_are_left_out(paths: DatasetPaths) -> None:
    answers = frame(one([True, False, True])).assign(image_id=["a" * 16, "b" * 16, "a" * 16])
    for name in (FIRST, SECOND):
        (paths.report(name) / KEPT).write_bytes(Kept.of(answers, ("a", "b")).to_bytes())
    withdraw(paths, "w1", "a" * 16)
    assert compare_reports(paths, (FIRST, SECOND))[1].changes.table["n_common"].tolist() == [1]


def test_comparison_whose_every_image_was_withdrawn_compares_nothing(paths: DatasetPaths) -> None:
    withdraw(paths, "w1", f"{0:016x}", f"{1:016x}")
    _, comparison = compare_reports(paths, (FIRST, SECOND))
    assert comparison.answer[0] == "The two reports share no accuracy that could be compared."


def test_comparison_with_a_report_from_before_a_withdrawal_goes_with_it(paths: DatasetPaths) -> None:
    withdraw(paths, "w1", f"{1:016x}")
    page, _ = compare_reports(paths, (FIRST, SECOND))
    traces = [trace.path for trace in find_traces(paths, (), {f"{1:016x}"}, ["w1"])]
    assert traces == [f"reports/{name}" for name in (FIRST, SECOND, page.parent.name)]


def told(paths: DatasetPaths, a: dict[str, Any], b: dict[str, Any], /, **answers: Kept) -> dict[str, list[str]]:
    both = StoredReport(paths.report("a" * 12), a), StoredReport(paths.report("b" * 12), b)
    same = kept(one([True, True]))
    return origins(paths, both, (answers.get("before", same), answers.get("now", same)))


def test_settings_weights_and_code_are_told_by_stage_once(paths: DatasetPaths) -> None:
    nodes = [f"embeddings[{policy}]" for policy in ("union", "none")]
    before = [stage(node, settings={"px": 1, "classes": ["a"]}, weights={"w": "1" * 64}) for node in nodes]
    now = [stage(node, settings={"px": [2]}, weights={"w": "2" * 64}, version=2) for node in nodes]
    assert told(paths, provenance(*before), provenance(*now)) == {
        "Settings": ["embeddings.px: 1 -> [2]"],
        "Models and weights": ["w: 111111111111 -> 222222222222"],
        "Software": ["code of the stage embeddings: version 1 -> 2"],
    }


def test_changed_policy_is_a_setting_and_so_are_seeds(paths: DatasetPaths) -> None:
    before = provenance(stage("masks[union]", settings={"policy": "union"}))
    now = provenance(
        stage("masks[none]", settings={"policy": "none"}), command="pipeline report --set 'study.seeds=[0]'"
    )
    assert told(paths, before, now) == {"Settings": ["masks.policy: union -> none", "study.seeds: default -> [0]"]}


def test_software_is_that_of_the_runs_and_lost_records_are_named(paths: DatasetPaths) -> None:
    write_run(paths, "20260103T000000Z-cccc", torch="2")
    before, now = provenance(stage()), provenance(stage(runs=[RUN_A, "20260103T000000Z-cccc"]))
    assert told(paths, before, now) == {"Software": ["torch: 1 -> 1 and 2"]}
    lost = StoredReport(paths.report(FIRST), provenance(stage(runs=[RUN_A, "gone"])))
    assert lost_runs(paths, lost) == ["gone"]


def test_drops_withdrawals_and_test_images_are_told(paths: DatasetPaths) -> None:
    withdraw(paths, "w1", "a", "b")
    drops = [*provenance()["drops"], {"id": "drop-002", "n_items": 3, "inventory_sha256": "cd", "created": ""}]
    found = told(
        paths,
        provenance(),
        provenance(drops=drops, withdrawals=["w1"]),
        before=kept(one([True] * 4), classes=("a", "b")),
        now=kept(one([True] * 4), first=2, classes=("b", "c"), flagged=[3, 5]),
    )
    assert found == {
        "Images": [
            "drop-002 is new: 3 images",
            "withdrawal w1: 2 images left",
            "classes: a, b -> b, c",
            "test images new: 2 of 4 (b 1, c 1), 1 of them flagged",
            "test images in A alone: 2 of 4 (a 1, b 1)",
            "test images with another label: a -> b: 1, b -> c: 1",
            "test images of both that are newly flagged, as in training too: 1",
        ]
    }


def test_arrays_that_were_computed_anew_are_named_where_nothing_else_differs(paths: DatasetPaths) -> None:
    before, now = (provenance(stage("probes[union]", upstream={"data": digest})) for digest in "ab")
    (line,) = told(paths, before, now)["Features"]
    assert line.startswith("the arrays that probes reads are other ones")
