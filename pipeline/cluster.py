"""Where units run: in this process, or in worker processes under Dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, Self

from manifests.errors import ConfigError, PipelineError
from pipeline.cluster_config import ClusterConfig
from pipeline.execute import UnitReport, UnitTask, run_unit
from pipeline.gpus import visible_gpus

Outcome = tuple[UnitTask, UnitReport | Exception]
Stopping = Callable[[], float | None]
"""None to go on; else the seconds that units in flight may still take. No further unit is started."""


class Cluster(Protocol):
    """Runs tasks; yields each with its report, or with the exception that ended it for good."""

    workers: int

    def run(self, tasks: Sequence[UnitTask], stopping: Stopping) -> Iterator[Outcome]:
        """Yield outcomes as they complete; tasks are started in order."""
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

    def run(self, tasks: Sequence[UnitTask], stopping: Stopping) -> Iterator[Outcome]:
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


class Clusters:
    """The cluster that serves one node after the other; a new one where GPUs are needed and were not, or no longer.

    Parameters
    ----------
    config : ClusterConfig
        Kind, workers, threads, retries.
    scratch : str
        Folder for Dask's own temporary files.
    logs : Path
        Folder for what batch jobs print.
    """

    def __init__(self, config: ClusterConfig, scratch: str, logs: Path) -> None:
        self._config, self._scratch, self._logs = config, scratch, logs
        self._open: dict[bool, Cluster] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def serve(self, units: int, *, gpu: bool) -> Cluster:
        """The cluster for a node with a model on a GPU, or any other; as it stands, if it is of the right sort.

        Parameters
        ----------
        units : int
            Most units that this node and those after it have; no more workers than units are started here.
        gpu : bool
            Whether units want a GPU.
        """
        gpu = gpu and not self._config.stands  # there, units that want a GPU say so one by one
        if gpu not in self._open:
            if self._config.is_queue:  # jobs that hold GPUs do not wait while others work
                self._stack.close()
                self._open.clear()
            cluster = open_cluster(self._config, units, self._scratch, logs=self._logs, gpu=gpu)
            self._open[gpu] = self._stack.enter_context(cluster)
        return self._open[gpu]


def open_cluster(
    config: ClusterConfig, units: int, scratch: str, *, logs: Path, gpu: bool
) -> AbstractContextManager[Cluster]:
    """Start what the configuration asks for, or connect to it, and leave it as it was afterwards.

    Parameters
    ----------
    config : ClusterConfig
        Kind, workers, threads, retries.
    units : int
        Most units that one stage may have; no more workers than units are started on this machine.
    scratch : str
        Folder for Dask's own temporary files.
    logs : Path
        Folder for what batch jobs print.
    gpu : bool
        Whether units want a GPU.
    """
    if not (config.is_queue or config.stands) and _kind(config, units, gpu=gpu) == "inline":
        return _inline(config.retries)
    _quiet_dask()
    if config.is_queue:
        from pipeline.dask_jobs import job_cluster

        return job_cluster(config, logs, gpu=gpu)
    from pipeline.dask_sites import local_cluster, standing_cluster

    if config.stands:
        return standing_cluster(config)
    return local_cluster(config, worker_count(config, units, gpu=gpu), scratch, gpu=gpu)


def _quiet_dask() -> None:
    """Keep Dask from speaking at length of every connection; the runner says what became of the units."""
    import dask

    quiet = ("distributed", "distributed.client", "tornado.application", "asyncio")
    dask.config.set({"logging": dict.fromkeys(quiet, "critical")})


@contextmanager
def _inline(retries: int) -> Iterator[Cluster]:
    yield InlineCluster(retries)


def worker_count(config: ClusterConfig, units: int, *, gpu: bool = False) -> int:
    """How many units run at once on this machine, if a stage has so many."""
    if _kind(config, units, gpu=gpu) == "inline":
        return 1
    return max(1, min(_most_workers(config, gpu=gpu), units))


def _most_workers(config: ClusterConfig, *, gpu: bool) -> int:
    if gpu:
        return min(config.workers or 8, len(visible_gpus()))
    return config.workers or min(8, len(os.sched_getaffinity(0)))


def _kind(config: ClusterConfig, units: int, *, gpu: bool) -> str:
    if config.kind == "auto":
        return "local" if gpu or (_most_workers(config, gpu=gpu) > 1 and units > 1) else "inline"
    return config.kind


def choose_device(config: ClusterConfig) -> str:
    """`cuda` or `cpu`, for stages with a model.

    Raises
    ------
    ConfigError
        If a GPU is asked for and none is there; there is no silent fall back to the CPU.
    """
    if config.device == "cpu":
        return "cpu"
    available = _has_gpus(config)
    if config.device == "cuda" and not available:
        raise ConfigError(
            "cluster.device is 'cuda', but "
            + ("cluster.jobs.gpus is 0." if config.is_queue else "no CUDA device is visible."),
            "Use --set cluster.device=auto.",
        )
    return "cuda" if available else "cpu"


def _has_gpus(config: ClusterConfig) -> bool:
    """Whether workers of the configured cluster have GPUs."""
    if config.is_queue:
        return config.jobs.gpus > 0
    if not config.stands:
        return bool(visible_gpus())
    _quiet_dask()
    from pipeline.dask_sites import look_at_standing

    standing = look_at_standing(config)
    if not standing.workers and config.device == "auto":
        raise ConfigError(
            "No worker is connected to the scheduler, so that it is not known whether there are GPUs.",
            "Start workers first, or say it: --set cluster.device=cpu, or cuda.",
        )
    return standing.gpus or (not standing.workers and config.device == "cuda")
