"""What every Dask worker process does before it takes its first unit, wherever it was started."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from distributed import Status, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from manifests.errors import ConfigError
from pipeline.canary import WorkerRefusedError
from pipeline.gpus import visible_gpus

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STARTED: Final = "MEDFOCUS_JOB_STARTED"
"""Environment variable with the second at which a worker's batch job began."""
CLOSE_S: Final = 10.0
"""What a worker and its nanny take to end in good order, in seconds."""
FETCH_S: Final = 2.0
"""What the driver takes to fetch the last unit's report, in seconds."""


@dataclass(frozen=True, slots=True)
class Life:
    """When a worker of a batch job takes no further unit."""

    lifetime_s: float
    """After the job's start."""
    stagger_s: float
    """Up to so much earlier."""
    walltime_s: float
    """When the job ends: until shortly before, the unit at work may end."""

    def age_s(self) -> float:
        """Seconds since the job of this process began."""
        return time.time() - float(os.environ.get(STARTED, time.time()))

    def remaining_s(self) -> float:
        """Seconds until this worker takes no further unit."""
        early_s = np.random.default_rng().uniform(0, self.stagger_s)
        return max(0.0, self.lifetime_s - early_s - self.age_s())

    def patience_s(self) -> float:
        """Seconds that the unit at work may still take."""
        return max(0.0, self.walltime_s - CLOSE_S - self.age_s())


class Prepare(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Leaves signals to the driver, and takes one GPU of several; the model follows with the first unit.

    Parameters
    ----------
    life : Life, optional
        Of workers whose job has a walltime. Dask's own `--lifetime` would drop the unit at work.
    """

    def __init__(self, life: Life | None = None) -> None:
        self.name = f"medfocus-{uuid.uuid4().hex}"  # two drivers may use one cluster
        self._life = life

    def setup(self, worker: Any) -> None:
        """Prepare a worker process.

        A batch system or Ctrl-C signals every process of a job; the driver decides what happens to units in flight, and
        the nanny, which a batch system signals too, still ends its worker in good order.

        Raises
        ------
        ConfigError
            If several GPUs are visible and the worker's name does not say which is its own.
        """
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
        devices = visible_gpus()
        if len(devices) > 1 and "GPU" in worker.state.total_resources:
            try:
                os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(str(worker.name), devices)
            except ConfigError:  # of a worker that joins later, Dask only notes that its set-up failed
                worker.io_loop.add_callback(worker.close, reason="which GPU is its own is not known")
                raise
        if self._life is not None:
            worker.io_loop.call_later(self._life.remaining_s(), drain, worker, self._life)

    def teardown(self, worker: Any) -> None:  # noqa: ARG002  the signature is Dask's
        """Handle signals as before: a worker that stood before this run stands after it."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


async def drain(worker: Any, life: Life) -> None:
    """Take no further unit, wait for the one at work, hand on the rest, and end.

    Parameters
    ----------
    worker : distributed.Worker
        This process' worker.
    life : Life
        The unit at work may end until shortly before its end; else another worker computes it anew.
    """
    worker.status = Status.closing_gracefully
    while worker.state.executing and life.patience_s() > 0:
        await asyncio.sleep(0.2)
    await asyncio.sleep(FETCH_S)
    await worker.scheduler.retire_workers(
        workers=[worker.address], close_workers=False, remove=True, stimulus_id=f"drained-{time.time()}"
    )
    await worker.close(reason="its job ends soon")


def signed(attempt: Callable[[Any], Any], task: Any) -> Any:
    """Run a unit in a worker; a refusal says whose it is."""
    result = attempt(task)
    if isinstance(result, WorkerRefusedError):
        result.worker = get_worker().address
    return result


def own_gpu(name: str, devices: tuple[str, ...]) -> str:
    """The GPU of a worker whose name ends in its number on the machine.

    Raises
    ------
    ConfigError
        If the name is an address, which says nothing.
    """
    number = re.search(r"(\d+)$", name)
    if "://" in name or number is None:
        raise ConfigError(
            f"The worker {name!r} sees {len(devices)} GPUs and its name does not say which is its own.",
            "Start workers with a name: dask worker --name NAME --nworkers N, or give each one CUDA_VISIBLE_DEVICES.",
        )
    return devices[int(number[1]) % len(devices)]
