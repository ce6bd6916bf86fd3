"""Workers that die, images that kill them, and signals that reach every process of a job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dask
import psutil
import pytest
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError

from manifests.commits import read_commit
from manifests.drops import load_drops, load_rows
from manifests.errors import RefusedError
from manifests.layout import DatasetPaths
from manifests.types import Status
from pipeline import dask_client, dask_cluster, dask_sites
from pipeline.attempts import WorkerDiedError
from pipeline.canary import BrokenGpuError, WorkerRefusedError
from pipeline.config import ClusterConfig
from pipeline.dask_cluster import DaskCluster
from pipeline.dask_sites import Household, local_cluster
from pipeline.execute import UnitReport, UnitTask
from pipeline.plan import PlannedUnit
from pipeline.worker import Prepare
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


@pytest.mark.parametrize(
    ("deaths", "gap_s"), [(1, 0.0), (3, 0.0), (3, 0.4)], ids=["one", "all at once", "one after the other"]
)
def test_workers_that_are_killed_while_they_are_prepared_are_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, deaths: int, gap_s: float
) -> None:
    class Deadly(Prepare):
        """Kills the first process of some workers while it prepares them."""

        def setup(self, worker: Any) -> None:
            once = tmp_path / f"once-{worker.name}"
            if worker.name < deaths and not once.exists():
                once.touch()
                time.sleep(gap_s * worker.name)
                os.kill(os.getpid(), signal.SIGKILL)
            super().setup(worker)

    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    monkeypatch.setattr(dask_sites, "Prepare", Deadly)
    with local_cluster(ClusterConfig(), 3, str(tmp_path / "scratch")) as cluster:
        outcomes = [result for _, result in cluster.run([task(tmp_path, i) for i in range(4)], patience(120))]
    assert len(outcomes) == 4
    assert all(isinstance(result, UnitReport) for result in outcomes)
    assert "died while it was prepared" in caplog.text


def test_workers_that_cannot_be_prepared_are_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if a worker died at every attempt."""
    monkeypatch.setattr(dask_client, "PREPARE_S", 2.0)
    monkeypatch.setattr(Client, "register_plugin", Mock(side_effect=CommClosedError("closed by the other side")))
    with (
        pytest.raises(RefusedError, match=r"cannot be prepared: closed by the other side\.") as caught,
        local_cluster(ClusterConfig(), 1, str(tmp_path / "scratch")),
    ):
        pass
    assert "run the same command again" in caught.value.fix
    assert "prepared again" in caplog.text


def patience(seconds: float) -> Callable[[], float | None]:
    """No further unit and no grace after so many seconds, so that a run that waits for ever fails its test."""
    end = time.monotonic() + seconds
    return lambda: 0.0 if time.monotonic() > end else None


def test_worker_that_takes_long_to_start_again_keeps_its_nanny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's own look at lost workers, 15 s unless told, is here shorter than any start."""
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    tasks = [task(tmp_path, i, "poison" if i == 0 else "") for i in range(4)]
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        local_cluster(ClusterConfig(retries=0), 1, str(tmp_path / "scratch")) as cluster,
    ):
        nannies = dict(spec_cluster(cluster).workers)
        outcomes = {t.planned.position: result for t, result in cluster.run(tasks, patience(120))}
        assert spec_cluster(cluster).workers == nannies
    assert isinstance(outcomes[0], WorkerDiedError)
    assert all(isinstance(outcomes[i], UnitReport) for i in (1, 2, 3))


def spec_cluster(cluster: DaskCluster) -> LocalCluster:
    """Dask's cluster behind ours."""
    return cluster._client.cluster


def close_nannies(cluster: LocalCluster) -> None:
    """End every nanny and its worker, as a nanny does by itself whose worker does not come up."""

    async def close() -> None:
        await asyncio.gather(*(nanny.close() for nanny in cluster.workers.values()))

    cluster.sync(close)


def test_workers_whose_nannies_gave_up_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    monkeypatch.setattr(dask_cluster, "LOOK_S", 0.5)
    with local_cluster(ClusterConfig(retries=0), 2, str(tmp_path / "scratch")) as cluster:
        close_nannies(spec_cluster(cluster))
        outcomes = [result for _, result in cluster.run([task(tmp_path, i) for i in range(4)], patience(120))]
        assert len(spec_cluster(cluster).workers) == 2
    assert all(isinstance(result, UnitReport) for result in outcomes)
    assert len(outcomes) == 4


@pytest.mark.parametrize(
    ("preload", "words"),
    [
        ("raise OSError('no such file system')", "a worker did not start: no such file system"),
        (f"import time; time.sleep({ENDLESS_S})", "no cause is known"),
    ],
    ids=["fails", "hangs"],
)
def test_run_whose_workers_never_come_back_ends_with_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preload: str, words: str
) -> None:
    began = time.monotonic()
    monkeypatch.setattr(dask_cluster, "LOOK_S", 0.5)
    monkeypatch.setattr(Household, "patience_s", 8.0)
    with local_cluster(ClusterConfig(retries=0), 1, str(tmp_path / "scratch")) as cluster:
        for spec in spec_cluster(cluster).worker_spec.values():
            spec["options"] = {**spec["options"], "preload": preload}
        close_nannies(spec_cluster(cluster))
        with pytest.raises(RefusedError, match=f"connected for 8 s; .*: {words}") as caught:
            list(cluster.run([task(tmp_path, 0)], patience(120)))
    assert time.monotonic() - began < ENDLESS_S / 2
    assert "run the same command again" in caught.value.fix


def test_worker_that_was_sent_away_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", refused_by_one)
    monkeypatch.setattr(dask_cluster, "LOOK_S", 0.5)
    with local_cluster(ClusterConfig(retries=0), 2, str(tmp_path / "scratch")) as cluster:
        outcomes = [result for _, result in cluster.run([task(tmp_path, i) for i in range(12)], patience(120))]
        assert len(spec_cluster(cluster).worker_spec) == 1
    assert all(isinstance(result, UnitReport) for result in outcomes)
    assert len({result.pid for result in outcomes if isinstance(result, UnitReport)}) == 1


def test_refused_worker_s_units_wait_for_another_that_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "attempt_unit", refused_by_one)
    with local_cluster(ClusterConfig(retries=0), 2, str(tmp_path / "scratch")) as cluster:
        next(iter(spec_cluster(cluster).workers.values())).process.process._process.kill()
        end = time.monotonic() + 60
        while len(spec_cluster(cluster).scheduler_info["workers"]) == 2 and time.monotonic() < end:
            time.sleep(0.02)
        ((_, result),) = cluster.run([task(tmp_path, 0)], patience(120))
    assert isinstance(result, UnitReport)


def refused_by_one(task: UnitTask) -> UnitReport | WorkerRefusedError:
    """A unit that the process that comes first refuses, with every other one that it meets."""
    first, own = Path(task.dataset_root) / "refuses", Path(str(os.getpid()))
    with contextlib.suppress(FileExistsError):
        first.symlink_to(own)
    if first.readlink() == own:
        return WorkerRefusedError("its packages are others", "Install the same.")
    time.sleep(0.3)
    return UnitReport(won=True, pid=os.getpid())


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
