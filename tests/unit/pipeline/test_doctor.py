"""What the doctor says of machines that are not those that compute, and of file systems that fail it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import contend, doctor
from pipeline.config import load_config

JOBS_ON_GPUS = ("cluster.kind=slurm", "cluster.jobs.gpus=1")


@pytest.mark.slow
def test_doctor_of_a_login_node_tries_the_model_on_the_cpu_and_goes_on_to_the_last_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "try_file_system", lambda _: 160)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    checks = list(doctor.examine(tmp_path, load_config(overrides=JOBS_ON_GPUS)))
    (seen,) = [check for check in checks if check.name == "canary"]
    assert seen.ok, seen.detail
    assert "from the known vector" in seen.detail
    assert [check.name for check in checks if not check.ok] == [checks[-1].name] == ["slurm"]
    assert checks[-1].detail == "scontrol is not here: submit from a machine of the cluster"


def test_model_that_does_not_run_here_is_a_failed_check_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(_: object) -> str:
        raise RuntimeError("no NVIDIA driver")

    monkeypatch.setattr(doctor, "try_file_system", lambda _: 160)
    monkeypatch.setattr(doctor, "_canary", no_driver)
    checks = {check.name: check for check in doctor.examine(tmp_path, load_config())}
    assert (checks["canary"].ok, checks["canary"].detail) == (False, "no NVIDIA driver")
    assert checks["kills"].ok


HANGS = "import time; time.sleep(600)"
FAILS = "import sys; sys.exit(3)"


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every writer that a test started; none is killed on the way."""
    monkeypatch.setattr(contend, "KILLS", 0)
    return []


def let_writers(monkeypatch: pytest.MonkeyPatch, writers: list[subprocess.Popen[bytes]], code: str) -> None:
    """Let every writer run this code."""

    def writer(*_: object) -> subprocess.Popen[bytes]:
        writers.append(subprocess.Popen([sys.executable, "-c", code]))
        return writers[-1]

    monkeypatch.setattr(contend, "_writer", writer)


def test_writer_that_fails_fails_the_trial_and_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: list[subprocess.Popen[bytes]]
) -> None:
    let_writers(monkeypatch, writers, FAILS)
    with pytest.raises(OSError, match="a writer ended with 3"):
        contend.try_file_system(tmp_path / "store")
    assert [writer.returncode in (3, -9) for writer in writers] == [True] * contend.WRITERS


@pytest.mark.parametrize(
    ("kills", "said"), [(0, "writers are not done within 1 s"), (1, "20 units of 4 small rows take longer than 1 s")]
)
def test_writers_that_hang_fail_the_trial_and_leave_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: list[subprocess.Popen[bytes]], kills: int, said: str
) -> None:
    monkeypatch.setattr(contend, "PATIENCE_S", 1)
    monkeypatch.setattr(contend, "KILLS", kills)
    let_writers(monkeypatch, writers, HANGS)
    with pytest.raises(OSError, match=said):
        contend.try_file_system(tmp_path / "store")
    assert [writer.returncode for writer in writers] == [-9] * contend.WRITERS
