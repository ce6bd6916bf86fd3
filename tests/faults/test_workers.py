"""Workers that die, images that kill them, and signals that reach every process of a job."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from manifests.commits import read_commit
from manifests.drops import load_drops, load_rows
from manifests.errors import RefusedError
from manifests.layout import DatasetPaths
from manifests.types import Status
from pipeline import dask_cluster
from pipeline.attempts import WorkerDiedError
from pipeline.canary import BrokenGpuError, WorkerRefusedError
from pipeline.config import ClusterConfig
from pipeline.dask_sites import local_cluster
from pipeline.execute import UnitReport, UnitTask
from pipeline.plan import PlannedUnit
from tests.conftest import ROOT, Cli
from tests.integration.pipelines import committed, copy_source, digests
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

ENDLESS_S = 300.0
SUPPLIED = ("--set", "masks.policy=supplied")


def attempt(task: UnitTask) -> UnitReport:
    """A unit that says in a file who runs it; it may kill its worker, or take longer than any test."""
    (Path(task.dataset_root) / task.planned.unit).write_text(f"{os.getpid()}\n")
    if task.source == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(ENDLESS_S if task.source == "endless" else 0.3)
    return UnitReport(won=True, pid=os.getpid())


def task(folder: Path, number: int, kind: str = "") -> UnitTask:
    planned = PlannedUnit("masks", f"{number:06d}", "new", number)
    return UnitTask(str(folder), "{}", kind, planned, "", "cpu", ("drop-001",), "run")


@pytest.mark.parametrize("workers", [1, 2])
def test_unit_that_kills_its_worker_fails_alone_and_names_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    tasks = [task(tmp_path, i, "poison" if i == 0 else "") for i in range(4)]
    with local_cluster(ClusterConfig(retries=1), workers, str(tmp_path / "scratch")) as cluster:
        outcomes = {t.planned.position: result for t, result in cluster.run(tasks, lambda: None)}
    assert isinstance(outcomes[0], WorkerDiedError)
    assert "signal 9" in str(outcomes[0])
    assert all(isinstance(outcomes[i], UnitReport) for i in (1, 2, 3))


def broken_at_first(task: UnitTask) -> UnitReport | BrokenGpuError:
    """A unit that says in a file who runs it, and whose first process, or every one, can use its GPU no more."""
    file = Path(task.dataset_root) / task.planned.unit
    before = file.read_text() if file.exists() else ""
    file.write_text(f"{before}{os.getpid()}\n")
    if before and task.source != "always":
        return UnitReport(won=True, pid=os.getpid())
    return BrokenGpuError("CUDA error: an illegal memory access was encountered.")


@pytest.mark.parametrize("kind", ["once", "always"])
def test_process_whose_gpu_is_broken_is_started_anew_once_and_its_unit_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", broken_at_first)
    with local_cluster(ClusterConfig(retries=0), 1, str(tmp_path / "scratch")) as cluster:
        ((_, result),) = cluster.run([task(tmp_path, 0, kind)], lambda: None)
    first, second = (tmp_path / "000000").read_text().split()
    assert first != second
    assert isinstance(result, UnitReport if kind == "once" else WorkerRefusedError)


@contextlib.contextmanager
def strikes(most: int) -> Iterator[None]:
    """Workers are killed as soon as they appear, so many at most."""
    killed: set[int] = set()
    over = threading.Event()

    def strike() -> None:
        while len(killed) < most and not over.wait(0.01):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if child.pid not in killed and "spawn_main" in " ".join(child.cmdline()) and len(killed) < most:
                        child.kill()
                        killed.add(child.pid)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert killed


def test_worker_that_is_killed_while_it_starts_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    with strikes(1), local_cluster(ClusterConfig(), 2, str(tmp_path / "scratch")) as cluster:
        outcomes = [result for _, result in cluster.run([task(tmp_path, i) for i in range(3)], lambda: None)]
    assert all(isinstance(result, UnitReport) for result in outcomes)
    assert len(outcomes) == 3
    assert "died while it started" in caplog.text


def test_workers_that_die_whenever_they_start_are_a_clear_error(tmp_path: Path) -> None:
    with (
        strikes(1000),
        pytest.raises(RefusedError, match=r"do not start: .*signal 9") as caught,
        local_cluster(ClusterConfig(), 1, str(tmp_path / "scratch")),
    ):
        pass
    assert "--workers 1" in caught.value.fix


def test_workers_leave_signals_to_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    with local_cluster(ClusterConfig(retries=0), 1, str(tmp_path / "scratch")) as cluster:
        first = next(r for _, r in cluster.run([task(tmp_path, 0)], lambda: None))
        assert isinstance(first, UnitReport)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(first.pid, number)
        second = next(r for _, r in cluster.run([task(tmp_path, 1)], lambda: None))
    assert isinstance(second, UnitReport)
    assert second.pid == first.pid


def test_no_unit_is_started_after_a_signal_and_those_in_flight_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    done: list[UnitTask] = []
    with local_cluster(ClusterConfig(), 1, str(tmp_path / "scratch")) as cluster:
        tasks = [task(tmp_path, i) for i in range(8)]
        for finished, _ in cluster.run(tasks, lambda: 30.0 if done else None):
            done.append(finished)
    assert 1 < len(done) <= 3


def test_grace_that_is_over_ends_units_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    endless = task(tmp_path, 0, "endless")
    begun = tmp_path / endless.planned.unit

    def grace_s() -> float | None:
        """Over once the unit computes; the file is complete when its line ends."""
        return 0.0 if begun.exists() and begun.read_text().endswith("\n") else None

    with local_cluster(ClusterConfig(), 1, str(tmp_path / "scratch")) as cluster:
        assert list(cluster.run([endless], grace_s)) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


KILLER = """
import os, signal
from manifests.readers import ImageSource
read = ImageSource.read
def deadly(self, row):
    if row.image_id in os.environ["POISON"].split() and row.image_id not in self.refused:
        os.kill(os.getpid(), signal.SIGSEGV)
    return read(self, row)
ImageSource.read = deadly
"""
"""Run at the start of every process that sees its folder on PYTHONPATH."""


def test_image_that_kills_its_process_is_left_out_and_all_others_finish(
    cli: Cli, phantom_folder: Path, tmp_path: Path
) -> None:
    study = Study(cli, tmp_path / "work", copy_source(phantom_folder, tmp_path / "source"))
    assert study.ingest("--chunk-items", 9).code == 0
    whole = study.cli("run", "--stage", "masks", "--workdir", study.work, "--cluster", "inline", *SUPPLIED)
    assert whole.code == 0, whole.err
    healthy = digests(study.dataset)
    paths = DatasetPaths(study.dataset)
    rows = load_rows(paths, load_drops(paths)[0])
    deadly = {rows[2].image_id, rows[5].image_id}
    shutil.rmtree(study.dataset / "stages")

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLER)
    env = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "POISON": " ".join(deadly)}
    run = ("run", "--stage", "masks", "--workdir", study.work, "--cluster", "local", "--workers", 2, *SUPPLIED)
    done = cli(*run, "--set", "cluster.retries=0", "--json", env=env)
    assert done.code == 3, done.err
    assert done.json["failed_images"] == {"poison": 2}
    assert done.json["failed_units"] == {}
    store = next((study.dataset / "stages" / "masks").glob("*/drop-001"))
    outcomes = [o for unit in ("000000", "000001") for o in read_commit(store, unit).outcomes()]  # type: ignore[union-attr]
    assert {o.image_id for o in outcomes if o.status == Status.FAILED} == deadly
    assert sum(o.status == Status.OK for o in outcomes) == 16

    again = cli(*run, "--json", env=env)
    assert (again.code, committed(study.dataset)) == (3, []), "a finished chunk is not tried again by itself"
    assert cli("retry", "--reason", "poison", "--workdir", study.work, *SUPPLIED).code == 0
    assert cli(*run).code == 0
    assert digests(study.dataset) == healthy
