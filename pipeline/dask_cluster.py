"""Units in worker processes under Dask's distributed scheduler."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dask

# Dask speaks at length of every connection and every worker's end; the runner says what became of the units.
dask.config.set({"logging.distributed": "critical"})
from distributed import Client, KilledWorker, LocalCluster, wait  # noqa: E402
from distributed.client import TimeoutError as WaitTimeoutError  # noqa: E402

from manifests.errors import PipelineError  # noqa: E402
from pipeline.cluster import Outcome, Stopping, visible_gpus  # noqa: E402
from pipeline.config import ClusterConfig  # noqa: E402
from pipeline.execute import UnitReport, UnitTask, attempt_unit  # noqa: E402
from pipeline.logs import log  # noqa: E402

UNITS_IN_FLIGHT = 2
"""Units a worker holds at most: one that computes and one that waits."""
MOST_POISON = 8
"""Images of one chunk that are left out at most; where more kill the process, something else is wrong."""
POLL_S = 0.5
"""How often signals are looked at while units compute, in seconds."""


class WorkerDiedError(PipelineError):
    """A unit's worker process ended without a word, as often as retries allow."""


class LastWords(logging.Handler):
    """Keeps what Dask's nannies last said of a worker's end: the signal, the exit status or the memory limit."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.text = "no cause is known"

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line that names a cause."""
        text = record.getMessage()
        if any(word in text for word in ("killed by signal", "exited with status", "memory budget")):
            self.text = text


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
    last_words : LastWords
        Listens to the nannies.
    """

    def __init__(self, client: Client, workers: int, retries: int, last_words: LastWords) -> None:
        self.workers = workers
        self._client = client
        self._retries = retries
        self._last_words = last_words

    def run(self, tasks: Sequence[UnitTask], stopping: Stopping) -> Iterator[Outcome]:
        """Yield outcomes as they complete, in any order.

        A unit that was near a worker's death runs once more with nothing beside it, so that only the guilty one fails;
        of a guilty chunk the images are found that kill the process, and it runs without them.
        """
        queue = iter(tasks)
        flying: dict[Any, UnitTask] = {}
        suspects: list[UnitTask] = []
        alone = False
        while True:
            grace_s = stopping()
            while grace_s is None and not alone and len(flying) < UNITS_IN_FLIGHT * self.workers:
                task = next(queue, None)
                if task is None:
                    break
                flying[self._submit(task, task.key)] = task
            if not flying and grace_s is None and suspects:
                alone, task = True, suspects.pop(0)
                flying[self._submit(task, f"{task.key}#alone")] = task
            if not flying or (grace_s is not None and grace_s <= 0):
                self._client.cancel(list(flying))
                return
            for future in self._completed(flying):
                task, result = flying.pop(future), self._result(future)
                if isinstance(result, WorkerDiedError) and not alone:
                    suspects.append(task)
                elif isinstance(result, WorkerDiedError) and (poison := self._isolate(task, stopping)):
                    log.warning("%s: %d images kill their process and are left out", task.key, len(poison))
                    yield task, self._alone(replace(task, poison=poison), "without poison", stopping)
                else:
                    yield task, result

    def _isolate(self, task: UnitTask, stopping: Stopping) -> tuple[int, ...]:
        """Positions of the images of a chunk that kill the process by themselves; none if that is not the cause.

        The chunk is halved again and again, and each half computed alone; nothing is committed meanwhile.
        """
        if task.planned.chunk is None:
            return ()
        poison: list[int] = []
        deadly = [tuple(range(len(task.planned.chunk)))]
        while deadly:
            rows = deadly.pop(0)
            if len(rows) == 1:
                poison += rows
                continue
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                if stopping() is not None or len(poison) + len(deadly) > MOST_POISON:
                    return ()
                name = f"rows {half[0]} to {half[-1]}"
                if isinstance(self._alone(replace(task, rows=half), name, stopping), WorkerDiedError):
                    deadly.append(half)
        return tuple(sorted(poison))

    def _alone(self, task: UnitTask, name: str, stopping: Stopping) -> UnitReport | Exception:
        """Run one task with nothing beside it, and wait for it, or for the end of the grace after a signal."""
        future = self._submit(task, f"{task.key}#{name}")
        while not self._completed({future: task}):
            grace_s = stopping()
            if grace_s is not None and grace_s <= 0:
                self._client.cancel([future])
                return RuntimeError("stopped by a signal")
        return self._result(future)

    @staticmethod
    def _completed(flying: dict[Any, UnitTask]) -> list[Any]:
        try:
            return list(wait(list(flying), timeout=POLL_S, return_when="FIRST_COMPLETED").done)
        except WaitTimeoutError:
            return []

    def _submit(self, task: UnitTask, key: str) -> Any:
        return self._client.submit(attempt_unit, task, key=f"{task.run_id}/{key}", pure=False, retries=self._retries)

    def _result(self, future: Any) -> UnitReport | Exception:
        error = future.exception()
        if error is None:
            report: UnitReport | PipelineError = future.result()
            return report
        if isinstance(error, KilledWorker):
            return WorkerDiedError(f"Its worker process died: {self._last_words.text}.")
        return error if isinstance(error, Exception) else RuntimeError(f"the unit was {future.status}")


@contextmanager
def local_cluster(config: ClusterConfig, workers: int, scratch: str) -> Iterator[DaskCluster]:
    """Start worker processes on this machine, listening on the loopback interface alone; stop them afterwards.

    Parameters
    ----------
    config : ClusterConfig
        Threads and retries.
    workers : int
        Worker processes.
    scratch : str
        Folder for Dask's own temporary files.
    """
    environment = {f"{name}_NUM_THREADS": str(config.threads) for name in ("OMP", "MKL", "OPENBLAS")}
    settings = {
        "distributed.scheduler.allowed-failures": config.retries,
        "distributed.nanny.pre-spawn-environ": {**environment, "MEDFOCUS_GPUS": ",".join(visible_gpus())},
        "distributed.worker.preload": ["pipeline.worker"],
        # A site's own dask.yaml may name its cluster's scheduler, which is not this one.
        "distributed.scheduler.contact-address": None,
    }
    last_words, nanny = LastWords(), logging.getLogger("distributed.nanny")
    nanny.setLevel(logging.INFO)
    nanny.propagate = False
    nanny.addHandler(last_words)
    try:
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            yield DaskCluster(client, workers, config.retries, last_words)
    finally:
        nanny.removeHandler(last_words)
