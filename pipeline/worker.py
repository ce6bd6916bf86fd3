"""What Dask runs in each worker process before it takes its first unit."""

from __future__ import annotations

import os
import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave signals to the driver, and take one GPU of several.

    A batch system or Ctrl-C signals every process of a job; the driver decides what happens to units in flight.

    Parameters
    ----------
    worker : distributed.Worker
        Its name is the position among the workers of this machine.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    devices = os.environ.get("MEDFOCUS_GPUS", "")
    if devices:
        own = devices.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = own[int(worker.name) % len(own)]
