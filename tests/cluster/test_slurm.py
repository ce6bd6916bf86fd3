"""The Slurm of these tests does what Slurm does: runs, arrays, dependencies, requeues, cancels."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cluster.slurm import Slurm, SlurmError


def script(folder: Path, *lines: str) -> Path:
    """A batch script of these lines."""
    path = folder / "job.sh"
    path.write_text("\n".join(("#!/bin/bash", *lines, "")))
    return path


def test_job_writes_its_output(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch(script(tmp_path, "echo hello"), f"--output={tmp_path}/out", "--job-name=greeting")
    assert slurm.wait(job) == {job: "COMPLETED"}
    assert (tmp_path / "out").read_text() == "hello\n"
    assert (job, "greeting", "COMPLETED") in slurm.jobs()


def test_failed_job_is_failed(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch(script(tmp_path, "exit 3"), f"--output={tmp_path}/out")
    assert slurm.wait(job) == {job: "FAILED"}


def test_array_runs_each_task(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch(script(tmp_path, "echo $SLURM_ARRAY_TASK_ID"), "--array=0-2", f"--output={tmp_path}/%a")
    assert slurm.wait(job) == {f"{job}_{task}": "COMPLETED" for task in range(3)}
    assert [(tmp_path / str(task)).read_text() for task in range(3)] == ["0\n", "1\n", "2\n"]
    assert slurm.state(job) == slurm.state(f"{job}_1") == "COMPLETED"


def test_dependent_job_runs_afterwards(slurm: Slurm, tmp_path: Path) -> None:
    both = (f"--output={tmp_path}/out", "--open-mode=append")
    first = slurm.sbatch(script(tmp_path, "sleep 1", "echo first"), *both)
    second = slurm.sbatch(script(tmp_path, "echo second"), *both, f"--dependency=afterok:{first}")
    slurm.wait([first, second], states=["COMPLETED"])
    assert (tmp_path / "out").read_text() == "first\nsecond\n"


def test_job_requeues_itself_once(slurm: Slurm, tmp_path: Path) -> None:
    again = '[ -n "$SLURM_RESTART_COUNT" ] || { scontrol requeue $SLURM_JOB_ID; exit 0; }'
    job = slurm.sbatch(script(tmp_path, again, "echo done"), f"--output={tmp_path}/out")
    assert slurm.wait(job) == {job: "COMPLETED"}
    assert slurm.restarts(job) == 1
    assert (tmp_path / "out").read_text() == "done\n"


def test_gpus_are_counted(slurm: Slurm, tmp_path: Path) -> None:
    show = script(tmp_path, "echo $SLURM_GPUS_ON_NODE $CUDA_VISIBLE_DEVICES")
    job = slurm.sbatch(show, "--partition=gpu", "--gpus-per-node=1", f"--output={tmp_path}/out")
    slurm.wait(job, states=["COMPLETED"])
    assert (tmp_path / "out").read_text().split()[0] == "1"
    with pytest.raises(SlurmError, match="node configuration is not available"):
        slurm.sbatch(show, "--gres=gpu:5")


def test_cancelled_job_ends(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch(script(tmp_path, "sleep 600"), f"--output={tmp_path}/out")
    slurm.wait(job, states=["RUNNING"])
    slurm.cancel(job)
    assert slurm.wait(job) == {job: "CANCELLED"}


def test_wait_tells_states_and_log(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.sbatch(script(tmp_path, "true"), "--hold", f"--output={tmp_path}/out")
    with pytest.raises(SlurmError, match=rf"{job} PENDING JobHeldUser\n(.|\n)*submit_batch_job: JobId={job}"):
        slurm.wait(job, timeout_s=0.2)
    slurm.cancel(job)
    with pytest.raises(SlurmError, match="no job 99999"):
        slurm.state("99999")


def test_stop_ends_jobs_and_daemons(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("second")
    second = Slurm(folder)
    second.start()
    try:
        second.sbatch(script(folder, "trap '' TERM", "sleep 600"), f"--output={folder}/out")
        wait_for(lambda: "slurm_script" in names(second))
        assert {"munged", "slurmctld", "slurmd", "slurmstepd"} <= names(second)
    finally:
        second.stop()
    assert second.processes() == []


def names(slurm: Slurm) -> set[str]:
    """Names of what was started and still runs; the daemons have helpers that end as they are looked at."""
    found = set()
    for process in slurm.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.name())
    return found


def wait_for(ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Return once it is so; a bound far above what it takes."""
    until = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.1)
