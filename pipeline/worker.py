"""What every Dask worker process does before it takes its first unit, wherever it was started."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from distributed import Status
from distributed.diagnostics.plugin import WorkerPlugin

from manifests.errors import ConfigError
from pipeline.gpus import visible_gpus

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
    """So much earlier or later."""
    margin_s: float
    """Between then and the walltime: the unit at work may end."""


class Prepare(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Leaves signals to the driver, and takes one GPU of several; the model follows with the first unit.

    Parameters
    ----------
    life : Life, optional
        Of workers whose job has a walltime. Dask's own `--lifetime` would drop the unit at work.
    """

    name = "medfocus"
    idempotent = True

    def __init__(self, life: Life | None = None) -> None:
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
            os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(str(worker.name), devices)
        if self._life is not None:
            worker.io_loop.call_later(remaining_s(self._life), drain, worker, self._life.margin_s - CLOSE_S)

    def teardown(self, worker: Any) -> None:  # noqa: ARG002  the signature is Dask's
        """Handle signals as before: a worker that stood before this run stands after it."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def remaining_s(life: Life) -> float:
    """Seconds until this worker takes no further unit."""
    age_s = time.time() - float(os.environ.get(STARTED, time.time()))
    return max(0.0, life.lifetime_s - age_s + np.random.default_rng().uniform(-life.stagger_s, life.stagger_s))


async def drain(worker: Any, patience_s: float) -> None:
    """Take no further unit, wait for the one at work, hand on the rest, and end.

    Parameters
    ----------
    worker : distributed.Worker
        This process' worker.
    patience_s : float
        Longest wait for the unit at work, in seconds; after it another worker computes it anew.
    """
    worker.status = Status.closing_gracefully
    deadline = time.monotonic() + patience_s
    while worker.state.executing and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    await asyncio.sleep(FETCH_S)
    await worker.scheduler.retire_workers(
        workers=[worker.address], close_workers=False, remove=True, stimulus_id=f"drained-{time.time()}"
    )
    await worker.close(reason="its job ends soon")


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
