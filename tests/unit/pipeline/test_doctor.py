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
    assert checks[-1].detail == "sbatch is not here: submit from a machine of the cluster"


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded, and no file system tried."""
    monkeypatch.setattr(doctor, "try_file_system", lambda _: 160)
    monkeypatch.setattr(doctor, "_canary", lambda _: "seen")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("cluster.device=cuda",), "no CUDA device is visible"),
        (("cluster.device=cuda", "cluster.kind=slurm"), "cluster.jobs.gpus is 0"),
        ((), ""),
        (("cluster.device=cuda", *JOBS_ON_GPUS), ""),
    ],
)
def test_gpu_that_is_asked_for_and_not_there_fails_as_a_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks = {check.name: check for check in doctor.examine(tmp_path, load_config(overrides=settings))}
    assert checks["devices"].ok == (not said)
    assert (said or "0 CUDA devices") in checks["devices"].detail


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("answers", "said"), [("is UP", "is UP (usable"), ("is DOWN", "is DOWN (not usable")])
def test_slurm_that_is_installed_and_not_asked_for_is_told_of_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str, said: str
) -> None:
    for name in doctor.SLURM_PROGRAMS:
        (tmp_path / name).write_text(f"#!/bin/sh\necho controller {answers}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    checks = {check.name: check for check in doctor.examine(tmp_path, load_config())}
    assert checks["slurm"].ok
    assert said in checks["slurm"].detail


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
