"""What every Dask worker process does before it takes its first unit, wherever it was started."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin

from manifests.errors import ConfigError
from pipeline.gpus import visible_gpus

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Prepare(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Leaves signals to the driver, and takes one GPU of several; the model follows with the first unit."""

    name = "medfocus"
    idempotent = True

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

    def teardown(self, worker: Any) -> None:  # noqa: ARG002  the signature is Dask's
        """Handle signals as before: a worker that stood before this run stands after it."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
