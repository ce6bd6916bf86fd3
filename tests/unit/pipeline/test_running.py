"""Signals while the report is made, and batch jobs whose walltimes end without any unit committed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manifests.errors import ExitCode, RefusedError
from manifests.layout import DatasetPaths
from manifests.runs import finish_run, start_run
from pipeline import running
from pipeline.config import RunConfig
from pipeline.runner import Outcome, RunOptions
from pipeline.running import do_run
from pipeline.signals import StopSignal
from pipeline.tally import Tally


class FakeRunner:
    """A run that commits so many units, hears these signals, and leaves its record."""

    number = 0

    def __init__(self, paths: DatasetPaths, config: RunConfig, options: RunOptions) -> None:
        self.paths, self.config, self.options = paths, config, options
        self.workspace = SimpleNamespace(drops=())
        self.stop = StopSignal(60)

    def run(self) -> Outcome:
        tally = Tally()
        tally.committed["masks"] = int(os.environ["COMMITTED"])
        with self.stop.listening():
            for number in os.environ.get("HEARD", "").split():
                os.kill(os.getpid(), int(number))
        FakeRunner.number += 1
        code = ExitCode.INTERRUPTED if self.stop.name else ExitCode.DONE
        folder = self.paths.run(f"run-{FakeRunner.number:06}")
        finish_run(folder, start_run(folder, folder.name, (), {}), "ended", int(code), tally.as_json())
        return Outcome(folder.name, code, tally, 1.0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `--stage all`, in a batch job, with so many units committed and these signals."""
    monkeypatch.setattr(running, "Runner", FakeRunner)
    monkeypatch.setattr(running, "Workspace", lambda *_: None)
    monkeypatch.setattr(running, "do_report", lambda *_, **__: tmp_path / "reports" / "fp" / "index.html")
    workspace: Any = SimpleNamespace(paths=DatasetPaths(tmp_path), config=RunConfig())

    def run(committed: int, *heard: signal.Signals, job: str = "4711") -> int:
        for name, value in {"COMMITTED": committed, "HEARD": " ".join(str(int(s)) for s in heard)}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("SLURM_JOB_ID", job)
        return do_run(workspace, RunOptions("all"), as_json=False)

    return run


def events(folder: Path) -> str:
    """Events of all runs."""
    return "".join(file.read_text() for file in folder.glob("runs/*/events.jsonl"))


def test_report_ends_a_run_that_nothing_disturbs(run: Any, tmp_path: Path) -> None:
    assert run(3) == 0
    assert "reported" in events(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signal_while_the_report_is_made_ends_it_at_once_with_75(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    gone_on = []

    def report(*_: object, **__: object) -> Path:
        os.kill(os.getpid(), number)
        gone_on.append(True)
        return tmp_path

    monkeypatch.setattr(running, "do_report", report)
    assert run(3) == 75
    assert gone_on == []
    assert "reported" not in events(tmp_path)
    assert f"Stopped by {number.name}. Run the same command again" in capsys.readouterr().out


def test_job_that_commits_nothing_in_two_walltimes_is_not_requeued_again(run: Any) -> None:
    assert run(0, signal.SIGUSR1) == 75
    with pytest.raises(
        RefusedError, match=r"Nothing was committed in 2 walltimes of this job.*cluster\.jobs\.walltime"
    ):
        run(0, signal.SIGUSR1)


def test_job_whose_report_takes_longer_than_its_walltime_is_not_requeued_for_ever(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "do_report", lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1))
    assert [run(2), run(0)] == [75, 75]
    with pytest.raises(RefusedError, match="not requeued again"):
        run(0)


@pytest.mark.parametrize("committed", [(0, 1, 0), (1, 0), (5, 5, 5)])
def test_job_that_commits_something_in_every_other_walltime_is_requeued(run: Any, committed: tuple[int, ...]) -> None:
    assert [run(units, signal.SIGUSR1) for units in committed] == len(committed) * [75]


def test_other_jobs_and_other_signals_do_not_count(run: Any) -> None:
    assert [run(0, signal.SIGUSR1, job=job) for job in ("1", "2", "3", "")] == 4 * [75]
    assert [run(0, signal.SIGTERM) for _ in range(3)] == 3 * [75]
