"""Where units run: in this process, or in worker processes under Dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from manifests.errors import ConfigError, PipelineError
from pipeline.config import ClusterConfig
from pipeline.execute import UnitReport, UnitTask, run_unit

UNITS_IN_FLIGHT = 2
"""Units a worker holds at most: one that computes and one that waits."""


class WorkerDiedError(PipelineError):
    """A unit's worker process ended without a word, as often as retries allow."""


Outcome = tuple[UnitTask, UnitReport | Exception]


class Cluster(Protocol):
    """Runs tasks; yields each with its report, or with the exception that ended it for good."""

    workers: int

    def run(self, tasks: Sequence[UnitTask], stopping: Callable[[], float | None]) -> Iterator[Outcome]:
        """Yield outcomes as they complete.

        Parameters
        ----------
        tasks : Sequence[UnitTask]
            Submitted in order, at most two a worker in flight.
        stopping : Callable[[], float | None]
            None to go on; else the seconds that units in flight may still take. No further unit is started.
        """
        ...


class InlineCluster:
    """One unit after the other in this process; no Dask.

    Parameters
    ----------
    retries : int
        Further attempts at a unit that raised something other than a `PipelineError`.
    """

    workers = 1

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def run(self, tasks: Sequence[UnitTask], stopping: Callable[[], float | None]) -> Iterator[Outcome]:
        """Yield outcomes in the order of the tasks."""
        for task in tasks:
            if stopping() is not None:
                return
            yield task, self._attempt(task)

    def _attempt(self, task: UnitTask) -> UnitReport | Exception:
        failure: Exception | None = None
        for _ in range(self._retries + 1):
            try:
                return run_unit(task)
            except PipelineError as error:
                return error
            except Exception as error:  # noqa: BLE001  # the one border that records a bug and lets other units go on
                failure = error
        return failure or RuntimeError(f"{task.key}: no attempt was made")


class DaskCluster:
    """Worker processes under Dask's scheduler.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    workers : int
        Worker processes.
    retries : int
        Further attempts at a unit that raised; a worker's death counts as an attempt too.
    """

    def __init__(self, client: Any, workers: int, retries: int) -> None:
        self.workers = workers
        self._client = client
        self._retries = retries

    def run(self, tasks: Sequence[UnitTask], stopping: Callable[[], float | None]) -> Iterator[Outcome]:
        """Yield outcomes as they complete, in any order."""
        from distributed import wait
        from distributed.client import TimeoutError as WaitTimeoutError

        queue = iter(tasks)
        flying: dict[Any, UnitTask] = {}
        suspects: list[UnitTask] = []
        while True:
            grace_s = stopping()
            while grace_s is None and len(flying) < UNITS_IN_FLIGHT * self.workers:
                task = next(queue, None)
                if task is None:
                    break
                flying[self._submit(task)] = task
            if not flying and grace_s is None and suspects:
                yield self._alone(suspects.pop())
                continue
            if not flying or (grace_s is not None and grace_s <= 0):
                self._client.cancel(list(flying))
                return
            try:
                done = wait(list(flying), timeout=0.5, return_when="FIRST_COMPLETED").done
            except WaitTimeoutError:
                continue
            for future in done:
                task, result = flying.pop(future), self._result(future)
                if isinstance(result, WorkerDiedError):
                    suspects.append(task)
                else:
                    yield task, result

    def _alone(self, task: UnitTask) -> Outcome:
        """Run a unit that was near a worker's death with nothing beside it, so that only the guilty one is blamed."""
        future = self._submit(task)
        return task, self._result(future)

    def _submit(self, task: UnitTask) -> Any:
        return self._client.submit(run_unit, task, key=task.key, pure=False, retries=self._retries)

    @staticmethod
    def _result(future: Any) -> UnitReport | Exception:
        from distributed import KilledWorker

        error = future.exception()
        if error is None:
            report: UnitReport = future.result()
            return report
        if isinstance(error, KilledWorker):
            return WorkerDiedError("its worker process died (killed, or out of memory)", "See the system's log.")
        return error if isinstance(error, Exception) else RuntimeError(f"the unit was {future.status}")


@contextmanager
def open_cluster(config: ClusterConfig, units: int, scratch: str) -> Iterator[Cluster]:
    """Start what the configuration asks for, and stop it afterwards.

    Parameters
    ----------
    config : ClusterConfig
        Kind, workers, threads, retries.
    units : int
        Units at hand; no more workers than units are started.
    scratch : str
        Folder for Dask's own temporary files.
    """
    workers = config.workers or min(8, gpu_count() or os.cpu_count() or 1)
    kind = config.kind
    if kind == "auto":
        kind = "local" if workers > 1 and units > 1 else "inline"
    if kind == "inline":
        yield InlineCluster(config.retries)
        return
    yield from _local(config, max(1, min(workers, units)), scratch)


def _local(config: ClusterConfig, workers: int, scratch: str) -> Iterator[Cluster]:
    import dask

    # Dask speaks at length of every connection and every worker's end; the runner says what became of the units.
    dask.config.set({"logging.distributed": "critical"})
    from distributed import Client, LocalCluster

    threads = str(config.threads)
    environment = {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")}
    settings = {
        "distributed.scheduler.allowed-failures": config.retries,
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.worker.daemon": True,
        "distributed.admin.large-graph-warning-threshold": "1MB",
    }
    dashboard = "127.0.0.1:0" if config.dashboard else None
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=dashboard,
            local_directory=scratch,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield DaskCluster(client, workers, config.retries)


def gpu_count() -> int:
    """CUDA devices that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    from pathlib import Path

    return len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()])


def choose_device(config: ClusterConfig) -> str:
    """`cuda` or `cpu`.

    Raises
    ------
    ConfigError
        If a GPU is asked for and none is there; there is no silent fall back to the CPU.
    """
    available = gpu_count() > 0
    if config.device == "cuda" and not available:
        raise ConfigError("cluster.device is 'cuda', but no CUDA device is visible.", "Use --set cluster.device=auto.")
    return "cuda" if available and config.device != "cpu" else "cpu"
