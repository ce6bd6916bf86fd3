"""kill -9 at random moments: the resumed store equals an undisturbed one, digest by digest."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import ROOT, Cli, command
from tests.integration.pipelines import digests, with_proposals

pytestmark = pytest.mark.slow

KILLS = 10
SETTINGS = with_proposals()


def start(work: Path, log: Path) -> subprocess.Popen[bytes]:
    """A run with two workers in a process group of its own."""
    arguments = command("run", "--workdir", work, "--cluster", "local", "--workers", 2, *SETTINGS)
    with log.open("ab") as stream:
        return subprocess.Popen(arguments, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Dask's worker processes of a run."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def wait_for_workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Workers as soon as both are there; none if the run ended first."""
    while process.poll() is None:
        found = workers_of(process)
        if len(found) >= 2:
            return found
        time.sleep(0.05)
    return []


def ingest(cli: Cli, source: Path, work: Path) -> None:
    labels = source / "labels.csv"
    arguments = ("ingest", source, "--dataset", "phantoms", "--labels", labels, "--workdir", work)
    assert cli(*arguments, "--chunk-items", 3).code == 0


@pytest.fixture(scope="module")
def undisturbed(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Digests of a run that nobody disturbed."""
    work = tmp_path_factory.mktemp("undisturbed")
    ingest(cli, phantom_folder, work)
    done = cli("run", "--workdir", work, "--cluster", "inline", *SETTINGS)
    assert done.code == 0, done.err
    return digests(work / "phantoms")


def test_ten_kills_of_workers_and_runs_leave_the_store_as_if_undisturbed(
    cli: Cli, phantom_folder: Path, tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    rng = np.random.default_rng(20261125)
    log, kills, finished = tmp_path / "log", {"worker": 0, "driver": 0, "group": 0}, 0
    work = tmp_path / "work-0"
    ingest(cli, phantom_folder, work)
    while sum(kills.values()) < KILLS or finished == 0:
        process = start(work, log)
        target = ("worker", "driver", "group")[sum(kills.values()) % 3]
        workers = wait_for_workers(process)
        time.sleep(float(rng.uniform(0, 9)))
        if workers and process.poll() is None and sum(kills.values()) < KILLS:
            strike(process, target, rng)
            kills[target] += 1
        process.wait(timeout=240)
        gone(workers)
        if process.returncode == 0:
            assert digests(work / "phantoms") == undisturbed
            finished += 1
            work = tmp_path / f"work-{finished}"
            ingest(cli, phantom_folder, work)
        else:
            assert process.returncode == -signal.SIGKILL, log.read_text()
    assert sum(kills.values()) == KILLS
    assert min(kills.values()) >= 3


def strike(process: subprocess.Popen[bytes], target: str, rng: np.random.Generator) -> None:
    """SIGKILL one worker, the driver alone, or all of them at once."""
    if target == "worker":
        living = workers_of(process)
        if living:
            living[int(rng.integers(len(living)))].kill()
    elif target == "driver":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def gone(workers: list[psutil.Process]) -> None:
    """No worker outlives its run for long."""
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_to_the_whole_job_ends_the_run_with_75_and_the_next_run_completes_it(
    cli: Cli, phantom_folder: Path, tmp_path: Path, undisturbed: dict[str, dict[str, str]], number: signal.Signals
) -> None:
    ingest(cli, phantom_folder, tmp_path)
    process = start(tmp_path, tmp_path / "log")
    wait_for_workers(process)
    time.sleep(4)
    os.killpg(process.pid, number)  # as a batch system does: to every process of the job
    assert process.wait(timeout=120) == 75, (tmp_path / "log").read_text()
    assert "run the same command again" in (tmp_path / "log").read_text()
    done = cli("run", "--workdir", tmp_path, "--cluster", "local", "--workers", 2, *SETTINGS)
    assert done.code == 0, done.err
    assert digests(tmp_path / "phantoms") == undisturbed


def test_two_runs_at_once_give_one_undisturbed_store(
    cli: Cli, phantom_folder: Path, tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    ingest(cli, phantom_folder, tmp_path)
    arguments = command("run", "--workdir", tmp_path, "--cluster", "inline", *SETTINGS)
    both = [subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in "ab"]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err.decode()
    assert digests(tmp_path / "phantoms") == undisturbed
