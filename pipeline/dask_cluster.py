"""Units in worker processes under Dask's distributed scheduler: what becomes of each, and whose fault it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from distributed import Client, KilledWorker, wait
from distributed.client import TimeoutError as WaitTimeoutError
from distributed.comm import CommClosedError

from manifests.errors import PipelineError, RefusedError
from pipeline.attempts import Attempt, WorkerDiedError, WorkersEndedError
from pipeline.canary import BrokenGpuError, WorkerRefusedError
from pipeline.cluster import Outcome, Stopping
from pipeline.dask_client import asking, nanny_lives, scheduler_lost
from pipeline.execute import UnitReport, UnitTask, attempt_unit
from pipeline.logs import log
from pipeline.worker import signed
from pipeline.workforce import Workforce

UNITS_IN_FLIGHT: Final = 2
"""Units a worker holds at most: one that computes and one that waits, or is read meanwhile."""
GPU_SHARE: Final = 1 / UNITS_IN_FLIGHT
"""Of a worker's resource `GPU=1` that a chunk asks for, so that the next one is read while this one computes.

A cell asks for all of it: some draw random numbers that a whole process shares.
"""
MOST_POISON: Final = 8
"""Images of one chunk that are left out at most; where more kill the process, something else is wrong."""
MOST_ENDED: Final = 20
"""Times that a unit's worker may be ended from outside before the unit counts as failed."""
MOST_REFUSED: Final = 20
"""Workers that are refused before the run gives up."""
POLL_S: Final = 0.5
"""How often signals are looked at while units compute, in seconds."""
FETCH_S: Final = 5.0
"""How long an outcome may take to arrive, in seconds; its worker may be gone, and the unit be computed anew."""
LOOK_S: Final = 10.0
"""How often lost jobs are asked for again, in seconds."""
PATIENCE_S: Final = 60.0
"""How often it is said that no worker is there, in seconds."""


class DaskCluster:
    """Worker processes under Dask's scheduler.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    workers : int
        Worker processes; the most, where they come and go.
    retries : int
        Further attempts at a unit that raised, or whose worker died by itself.
    workforce : Workforce
        Sees to workers that come and go.
    """

    def __init__(self, client: Client, workers: int, retries: int, workforce: Workforce) -> None:
        self.workers = workers
        self._client = client
        self._retries = retries
        self._workforce = workforce
        self._refused: set[str] = set()
        """Workers that were sent away."""
        self._renewed: set[str] = set()
        """Nannies whose worker was started anew, because its GPU failed."""
        self._gone: set[str] = set()
        """Nannies that are gone."""
        self._looked = time.monotonic()
        self._lonely = 0
        """Looks in a row that found no worker; not seconds, since a batch system may stop this process for hours."""

    def run(self, tasks: Sequence[UnitTask], stopping: Stopping) -> Iterator[Outcome]:
        """Yield outcomes as they complete, in any order.

        A unit that was near a worker's death runs once more with nothing beside it, so that only the guilty one fails;
        of a guilty chunk the images are found that kill the process, and it runs without them. A worker that was ended
        from outside, by a walltime or a person, speaks against no unit.

        Raises
        ------
        RefusedError
            If the scheduler is gone, or no worker has come for longer than the workforce's patience.
        """
        with asking(self._client):
            yield from self._run(iter(tasks), stopping)

    def _run(self, queue: Iterator[UnitTask], stopping: Stopping) -> Iterator[Outcome]:
        flying: dict[Any, Attempt] = {}
        suspects: list[UnitTask] = []
        alone = False
        while True:
            grace_s = stopping()
            while grace_s is None and not alone and len(flying) < UNITS_IN_FLIGHT * self.workers:
                task = next(queue, None)
                if task is None:
                    break
                self._submit(Attempt(task, task.key), flying)
            if not flying and grace_s is None and suspects:
                alone, task = True, suspects.pop(0)
                self._submit(Attempt(task, f"{task.key}#alone"), flying)
            if not flying or (grace_s is not None and grace_s <= 0):
                self._client.cancel(list(flying))
                return
            for task, result in self._settled(flying):
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
                result = self._alone(replace(task, rows=half), name, stopping)
                if isinstance(result, WorkersEndedError):
                    return ()
                if isinstance(result, WorkerDiedError):
                    deadly.append(half)
        return tuple(sorted(poison))

    def _alone(self, task: UnitTask, name: str, stopping: Stopping) -> UnitReport | Exception:
        """Run one task with nothing beside it, and wait for it, or for the end of the grace after a signal."""
        flying: dict[Any, Attempt] = {}
        self._submit(Attempt(task, f"{task.key}#{name}"), flying)
        while True:
            for _, result in self._settled(flying):
                return result
            grace_s = stopping()
            if grace_s is not None and grace_s <= 0:
                self._client.cancel(list(flying))
                return RuntimeError("stopped by a signal")

    def _submit(self, attempt: Attempt, flying: dict[Any, Attempt]) -> None:
        share = GPU_SHARE if attempt.task.planned.chunk else 1
        resources = {"GPU": share} if attempt.task.device == "cuda" else None
        future = self._client.submit(
            signed, attempt_unit, attempt.task, key=attempt.key, pure=False, retries=self._retries, resources=resources
        )
        flying[future] = attempt

    def _settled(self, flying: dict[Any, Attempt]) -> Iterator[Outcome]:
        """Wait a little; yield what ended for good, and start anew what a worker's end took with it."""
        try:
            with self._client.as_current():
                done = list(wait(list(flying), timeout=POLL_S, return_when="FIRST_COMPLETED").done)
        except WaitTimeoutError:
            done = []
        for future in done:
            attempt = flying.pop(future)
            try:
                report, error = self._fetched(future)
            except TimeoutError:
                flying[future] = attempt
                continue
            result = self._result(future, attempt, report) if error is None else self._after_error(error, attempt)
            future.release()  # a poll that timed out may still refer to it; a worker's end would have it computed anew
            if result is None:
                self._submit(attempt, flying)
            else:
                yield attempt.task, result
        self._look_after()

    def _look_after(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        self._workforce.look_after()
        connected = self._connected()
        if self._workforce.come_and_go:
            self.workers = max(1, len(connected))
        self._lonely = 0 if connected else self._lonely + 1
        alone_s = self._lonely * LOOK_S
        if alone_s >= self._workforce.patience_s:
            last = self._workforce.last_words.text
            raise RefusedError(
                f"No worker has been connected for {alone_s:.0f} s; of the last one: {last}.",
                f"{self._workforce.hint} What was committed stands: run the same command again.",
            )
        if alone_s and alone_s % PATIENCE_S == 0:
            log.warning("no worker is connected; units wait. %s", self._workforce.hint)

    def _connected(self) -> set[str]:
        """Addresses of the workers."""
        return set(self._client.scheduler_info(n_workers=-1)["workers"])

    def _fetched(self, future: Any) -> tuple[UnitReport | PipelineError | None, BaseException | None]:
        """A unit's report, or what it raised: maybe only when its report was lost and it was computed anew.

        Raises
        ------
        TimeoutError
            If neither is there: the worker that had it is gone.
        """
        error = future.exception(timeout=FETCH_S)
        if error is not None:
            return None, error
        try:
            return future.result(timeout=FETCH_S), None
        except (CancelledError, CommClosedError, TimeoutError):
            raise
        except Exception as raised:
            if scheduler_lost(self._client):
                raise
            return None, raised

    def _result(
        self, future: Any, attempt: Attempt, report: UnitReport | PipelineError | None
    ) -> UnitReport | PipelineError | None:
        """What a unit that ended comes to; None if it must be tried again."""
        if not isinstance(report, WorkerRefusedError):
            return report
        future.release()  # nobody is to keep, or to compute again, the answer of a worker that goes
        attempt.ended += 1
        return self._renew(report) if isinstance(report, BrokenGpuError) else self._refuse(report)

    def _after_error(self, error: BaseException, attempt: Attempt) -> Exception | None:
        """What a unit that raised comes to; None if it must be tried again."""
        if isinstance(error, KilledWorker):
            return self._after_death(error.last_worker, attempt)
        return error if isinstance(error, Exception) else RuntimeError(f"the unit raised {error!r}")

    def _after_death(self, worker: Any, attempt: Attempt) -> WorkerDiedError | WorkersEndedError | None:
        """Blame the unit only if its process ended by itself: then its nanny lives, and nobody told it to close."""
        if self._was_ended(worker):
            attempt.ended += 1
            log.info("%s: its worker was ended from outside; the unit is tried again", attempt.task.key)
            if attempt.ended <= MOST_ENDED:
                return None
            return WorkersEndedError(f"Its worker was ended from outside {attempt.ended} times.", self._workforce.hint)
        attempt.deaths += 1
        if attempt.deaths <= self._retries:
            return None
        return WorkerDiedError(f"Its worker process died: {self._workforce.last_words.text}.")

    def _was_ended(self, worker: Any) -> bool:
        events = self._client.get_events(worker.address)
        if any(isinstance(event, dict) and event.get("action") == "closing-worker" for _, event in events):
            return True
        if (
            worker.nanny is not None
            and worker.nanny not in self._gone
            and not self._client.sync(nanny_lives, self._client, worker.nanny)
        ):
            self._gone.add(worker.nanny)
        return worker.nanny in self._gone

    def _renew(self, error: BrokenGpuError) -> WorkerRefusedError | None:
        """Have a process started anew that can use its GPU no more; at the second time the worker is sent away."""
        worker = self._client.scheduler_info(n_workers=-1)["workers"].get(error.worker)
        if worker is None:
            return None
        if worker["nanny"] is None or worker["nanny"] in self._renewed:
            return self._refuse(error)
        self._renewed.add(worker["nanny"])
        log.error("a worker process is started anew: %s", error)
        with suppress(KeyError):  # it ended meanwhile by itself, and is started anew all the same
            self._client.restart_workers([error.worker], raise_for_error=False)
        return None

    def _refuse(self, error: WorkerRefusedError) -> WorkerRefusedError | None:
        """Send away a worker that may not add to the store; its units go to another, if there is one."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        if error.worker not in self._refused:
            self._refused.add(error.worker)
            if error.worker in workers:
                self._workforce.dismiss(workers[error.worker]["name"])
                self._client.retire_workers([error.worker], close_workers=True)
            if len(self._refused) <= MOST_REFUSED:
                log.error("a worker is refused: %s", error)
        others = workers.keys() - self._refused or self._workforce.elastic
        return None if others and len(self._refused) <= MOST_REFUSED else error
