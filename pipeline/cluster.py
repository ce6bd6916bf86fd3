"""Where units run: in this process, or in worker processes under Dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from manifests.errors import ConfigError, PipelineError
from pipeline.config import ClusterConfig
from pipeline.execute import UnitReport, UnitTask, run_unit

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


@contextmanager
def open_cluster(config: ClusterConfig, units: int, scratch: str) -> Iterator[Cluster]:
    """Start what the configuration asks for, and stop it afterwards.

    Parameters
    ----------
    config : ClusterConfig
        Kind, workers, threads, retries.
    units : int
        Most units that one stage may have; no more workers than units are started.
    scratch : str
        Folder for Dask's own temporary files.
    """
    if _kind(config, units) == "inline":
        yield InlineCluster(config.retries)
        return
    from pipeline.dask_cluster import local_cluster

    with local_cluster(config, worker_count(config, units), scratch) as cluster:
        yield cluster


def worker_count(config: ClusterConfig, units: int) -> int:
    """How many units run at once, if a stage has so many."""
    return 1 if _kind(config, units) == "inline" else max(1, min(_most_workers(config), units))


def _most_workers(config: ClusterConfig) -> int:
    return config.workers or min(8, len(visible_gpus()) or len(os.sched_getaffinity(0)))


def _kind(config: ClusterConfig, units: int) -> str:
    if config.kind == "auto":
        return "local" if _most_workers(config) > 1 and units > 1 else "inline"
    return config.kind


def visible_gpus() -> tuple[str, ...]:
    """Names of the CUDA devices that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(d.strip() for d in visible.split(",") if d.strip() not in ("", "-1"))
    return tuple(sorted(p.name[6:] for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()))


def choose_device(config: ClusterConfig) -> str:
    """`cuda` or `cpu`.

    Raises
    ------
    ConfigError
        If a GPU is asked for and none is there; there is no silent fall back to the CPU.
    """
    available = bool(visible_gpus())
    if config.device == "cuda" and not available:
        raise ConfigError("cluster.device is 'cuda', but no CUDA device is visible.", "Use --set cluster.device=auto.")
    return "cuda" if available and config.device != "cpu" else "cpu"
