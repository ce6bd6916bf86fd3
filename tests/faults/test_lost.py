"""Workers and schedulers that are killed at moments when nobody waits for a unit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, Future

from manifests.errors import ConfigError, RefusedError
from pipeline import dask_client, dask_cluster, dask_sites
from pipeline.config import ClusterConfig
from pipeline.dask_sites import local_cluster, standing_cluster
from pipeline.execute import UnitReport, UnitTask
from pipeline.worker import Prepare
from tests.faults.test_workers import attempt, broken_at_first, patience, task
from tests.integration.standing import Certificates, StandingCluster, kill_group
from tests.integration.test_standing import IMPATIENT

pytestmark = pytest.mark.slow

CONNECT_S = 4
"""How long Dask looks for a scheduler here, in seconds; 30 elsewhere."""


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandingCluster]:
    """A scheduler without a worker, for which Dask does not look long."""
    monkeypatch.setattr(dask_sites, "CONNECT_S", CONNECT_S)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": f"{CONNECT_S}s"}),
        StandingCluster(tmp_path / "standing", Certificates.make(tmp_path / "tls")) as cluster,
    ):
        yield cluster.start_scheduler(IMPATIENT)


def of(cluster: StandingCluster) -> ClusterConfig:
    """How a run uses that cluster."""
    files = cluster.certificates
    tls = {"ca": files.ca, "cert": files.cert, "key": files.key}
    return ClusterConfig.model_validate({"scheduler_file": cluster.file, "tls": tls, "retries": 0})


@pytest.mark.parametrize("idle_s", [0, 2 * CONNECT_S + 1], ids=["just now", "longer ago than Dask looks for it"])
def test_scheduler_that_dies_between_two_stages_ends_the_run_in_two_lines(
    standing: StandingCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle_s: float
) -> None:
    monkeypatch.setattr(dask_cluster, "LOOK_S", 1.0)

    def run() -> None:
        with standing_cluster(of(standing)) as cluster:
            kill_group(standing.processes["scheduler"])
            time.sleep(idle_s)
            list(cluster.run([task(tmp_path, 0)], patience(60)))

    with pytest.raises(RefusedError, match=r"The Dask scheduler is gone\..*run the same command again"):
        run()


def test_scheduler_that_dies_before_its_workers_are_prepared_is_named(
    standing: StandingCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def killing(client: Client, plugin: Prepare) -> None:
        kill_group(standing.processes["scheduler"])
        dask_client.prepare_workers(client, plugin)

    monkeypatch.setattr(dask_sites, "prepare_workers", killing)
    with pytest.raises(RefusedError, match=r"The Dask scheduler is gone\."), standing_cluster(of(standing)):
        pass
    assert "died while it was prepared" not in caplog.text


def test_cluster_whose_workers_cannot_be_prepared_keeps_nothing_of_the_run(
    standing: StandingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Prepare):
        def setup(self, worker: Any) -> None:
            raise ConfigError(f"The worker {worker.name!r} sees 2 GPUs.", "Name it.")

    monkeypatch.setattr(dask_sites, "Prepare", Refusing)
    standing.start_worker("one")
    standing.wait_until(lambda: "Registered to" in standing.said("one"))
    with pytest.raises(ConfigError, match="sees 2 GPUs"), standing_cluster(of(standing)):
        pass
    monkeypatch.undo()
    with standing_cluster(of(standing)) as cluster:
        names = cluster._client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
    assert len([name for name in names if name.startswith("medfocus")]) == 1  # this run's


def test_report_that_is_lost_with_its_worker_is_computed_anew_and_signals_are_heard_meanwhile(
    standing: StandingCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[float] = []
    polled: list[float] = []

    def stopping() -> float | None:
        polled.append(time.monotonic())
        return patience_over()

    patience_over = patience(120)
    fetch = Future.result

    def result(future: Future, *arguments: Any, **more: Any) -> Any:
        if not lost:
            kill_group(standing.processes["one"])
            lost.append(time.monotonic())
            standing.start_worker("two")
        return fetch(future, *arguments, **more)

    monkeypatch.setattr(dask_cluster, "FETCH_S", 0.5)
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)
    monkeypatch.setattr(Future, "result", result)
    one = standing.start_worker("one")
    standing.wait_until(lambda: "Registered to" in standing.said("one"))
    with standing_cluster(of(standing)) as cluster:
        ((_, outcome),) = cluster.run([task(tmp_path, 0)], stopping)
    assert isinstance(outcome, UnitReport)
    assert not psutil.pid_exists(one.pid)
    assert len([at for at in polled if at > lost[0]]) > 1


def attempt_thrice(task: UnitTask) -> UnitReport:
    """A unit that says in a file who runs it; the second process that does dies of it."""
    file = Path(task.dataset_root) / task.planned.unit
    with file.open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    if len(file.read_text().split()) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return UnitReport(won=True, pid=os.getpid())


def test_worker_that_dies_of_a_lost_report_s_unit_is_one_death_and_not_the_run_s_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, fetch = tmp_path / "000000", Future.result

    def result(future: Future, *arguments: Any, **more: Any) -> Any:
        if len(file.read_text().split()) == 1:
            kill_and_wait(int(file.read_text()))
        return fetch(future, *arguments, **more)

    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt_thrice)
    monkeypatch.setattr(Future, "result", result)
    with local_cluster(ClusterConfig(retries=1), 1, str(tmp_path / "scratch")) as cluster:
        ((_, outcome),) = cluster.run([task(tmp_path, 0)], patience(120))
    assert isinstance(outcome, UnitReport)
    assert len(file.read_text().split()) == 3


def kill_and_wait(pid: int) -> None:
    """SIGKILL, and time for Dask to notice."""
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)


def test_process_whose_gpu_is_broken_may_end_before_it_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart: Callable[..., Any] = Client.restart_workers
    killed: list[int] = []

    def killing(client: Client, *arguments: Any, **more: Any) -> Any:
        killed.append(int((tmp_path / "000000").read_text()))
        kill_and_wait(killed[0])
        return restart(client, *arguments, **more)

    monkeypatch.setattr(dask_cluster, "attempt_unit", broken_at_first)
    monkeypatch.setattr(Client, "restart_workers", killing)
    with local_cluster(ClusterConfig(retries=0), 1, str(tmp_path / "scratch")) as cluster:
        ((_, outcome),) = cluster.run([task(tmp_path, 0, "once")], patience(120))
    assert isinstance(outcome, UnitReport)
    assert killed != [outcome.pid]
