"""Run records and event logs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manifests import disk, runs
from manifests.errors import StoreError
from manifests.events import EventLog, read_events
from manifests.runs import RunRecord, finish_run, git_commit, hide_paths, load_run, new_run_id, start_run


def begin(folder: Path) -> RunRecord:
    return start_run(folder, "r1", ["pipeline", "run"], {"masks": {"policy": "union"}})


def test_run_ids_sort_by_time_and_differ() -> None:
    ids = {new_run_id() for _ in range(20)}
    assert len(ids) > 1
    assert all(len(i) == 21 and i[8] == "T" and i[15:17] == "Z-" for i in ids)


def test_record_says_running_until_the_run_ends(tmp_path: Path) -> None:
    begin(tmp_path / "runs" / "r1")
    stored = load_run(tmp_path / "runs" / "r1")
    assert (stored.outcome, stored.finished, stored.exit_code) == ("running", None, None)
    assert stored.config == {"masks": {"policy": "union"}}


def test_finished_record_keeps_how_it_began(tmp_path: Path) -> None:
    record = begin(tmp_path)
    ended = finish_run(tmp_path, record, "failures", 3, {"failed_units": ["000001"]})
    assert load_run(tmp_path) == ended
    assert (ended.started, ended.exit_code, ended.counts) == (record.started, 3, {"failed_units": ["000001"]})
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_kill_while_finishing_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = begin(tmp_path)

    def die(name: str) -> None:
        raise KeyboardInterrupt(name)

    monkeypatch.setattr(disk, "checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        finish_run(tmp_path, record, "done", 0, {})
    assert load_run(tmp_path) == record


def test_record_has_versions_without_importing_torch(tmp_path: Path) -> None:
    code = "import sys, manifests.runs as r; print(r.installed_versions()['torch'], 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert out[1] == "False"
    assert begin(tmp_path).versions["torch"] == out[0]


def test_record_holds_neither_host_name_nor_paths(tmp_path: Path) -> None:
    config = {"cluster": {"address": str(tmp_path)}, "weights": ["~/w.pt"], "text": "a photo of {}"}
    start_run(tmp_path / "r", "r", ["/opt/bin/pipeline", f"--workdir={tmp_path}", "DOE/JANE", "--part", "3/16"], config)
    text = (tmp_path / "r" / "run.json").read_text()
    assert str(tmp_path) not in text
    assert "DOE" not in text
    assert os.uname().nodename not in load_run(tmp_path / "r").platform.split()
    assert load_run(tmp_path / "r").argv == ("<path>", "--workdir=<path>", "<path>", "--part", "3/16")


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--part=3/16", "--part=3/16"),
        ("--set=a.b=/x=y/z", "--set=a.b=<path>"),
        ("~/data", "<path>"),
        ("..", "<path>"),
        ("C:\\scans", "<path>"),
        ("masks.policy=union", "masks.policy=union"),
    ],
)
def test_paths_in_arguments_are_hidden(argument: str, shown: str) -> None:
    assert hide_paths(argument) == shown


def test_slurm_ids_are_kept_and_nothing_else_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-4]")
    assert begin(tmp_path).slurm == {"SLURM_ARRAY_TASK_ID": "7"}


def test_missing_git_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_package_outside_a_working_copy_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "manifests" / "runs.py"))
    assert git_commit() is None


def test_commit_of_the_working_copy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "manifests" / "runs.py"))
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit() == head


def test_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "PACKAGES", ("zarr", "no-such-distribution"))
    assert list(runs.installed_versions()) == ["zarr"]


@pytest.mark.parametrize(
    ("text", "problem"), [(None, "does not exist"), ("{", "damaged"), ('{"run_id": 1}', "damaged")]
)
def test_unreadable_record_is_refused_with_a_reason(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(StoreError, match=problem):
        load_run(tmp_path)


def test_events_are_read_in_order_with_utc_times(tmp_path: Path) -> None:
    with EventLog(tmp_path / "runs" / "events.jsonl") as log:
        log.write("planned", units=3)
        log.write("committed", unit="000001")
    events = read_events(tmp_path / "runs" / "events.jsonl")
    assert [(e["event"], e.get("units"), e.get("unit")) for e in events] == [
        ("planned", 3, None),
        ("committed", None, "000001"),
    ]
    assert all(e["time"].endswith("+00:00") for e in events)


def test_torn_last_line_is_left_out_and_spoils_no_later_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b", "un')
    assert [e["event"] for e in read_events(path)] == ["a"]
    with EventLog(path) as log:
        log.write("c")
    assert [e["event"] for e in read_events(path)] == ["a", "c"]


def test_line_that_is_no_object_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('3\n{"event": "a"}\n')
    assert read_events(tmp_path / "events.jsonl") == [{"event": "a"}]


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def write(name: str) -> None:
        with EventLog(path) as log:
            for i in range(200):
                log.write(name, text="x" * 500, i=i)

    threads = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Who opens the file while another writes may take the line for torn, and begins with an empty one.
    assert len(read_events(path)) == len([line for line in path.read_text().splitlines() if line]) == 800


def test_event_that_is_no_json_is_refused_whole(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        with pytest.raises(ValueError, match="not JSON compliant"):
            log.write("scored", accuracy=float("nan"))
        log.write("last")
    assert [e["event"] for e in read_events(tmp_path / "events.jsonl")] == ["last"]


def test_closing_a_log_twice_is_no_error(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.close()
    log.close()
    assert read_events(tmp_path / "events.jsonl") == []


def test_umask_is_honoured(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        begin(tmp_path / "r")
        EventLog(tmp_path / "r" / "events.jsonl").close()
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "r").iterdir()} == {0o600}
