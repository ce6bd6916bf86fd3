"""What a client of Dask's scheduler meets when workers, or the scheduler itself, are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Final

from distributed import Client
from distributed.comm import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin

from manifests.errors import PipelineError, RefusedError
from pipeline.logs import log

NOTICE_S: Final = 1.0
"""How much later than its answers a client's own status says that the scheduler is gone, in seconds."""
PING_S: Final = 5.0
"""Patience with a nanny that does not answer, in seconds."""
PREPARE_S: Final = 60.0
"""How long workers that die while they are prepared are prepared again, in seconds."""


@contextmanager
def asking(client: Client) -> Iterator[None]:
    """Say in two lines that the scheduler is gone, whatever Dask raises then.

    Parameters
    ----------
    client : distributed.Client
        The client that is asked inside.

    Raises
    ------
    RefusedError
        If the scheduler is gone. Any other error passes.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if isinstance(error, (CancelledError, CommClosedError)) or scheduler_lost(client):
            raise RefusedError(
                "The Dask scheduler is gone.", "What was committed stands: run the same command again."
            ) from error
        raise


def scheduler_lost(client: Client) -> bool:
    """Whether a client has lost its scheduler; waits a little for the client to notice."""
    end = time.monotonic() + NOTICE_S
    while client.status == "running" and time.monotonic() < end:
        time.sleep(0.05)
    return bool(client.status != "running")


def prepare_workers(client: Client, plugin: WorkerPlugin) -> None:
    """Give a plugin to the workers that are there and to those that will come.

    Dask gives up if a worker dies meanwhile; the others, and its successor, then have the plugin none the less.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    plugin : distributed.WorkerPlugin
        May be set up twice in one process.

    Raises
    ------
    RefusedError
        If the scheduler is gone, or workers die for longer than a minute.
    """
    end = time.monotonic() + PREPARE_S
    with asking(client):
        while True:
            try:
                client.register_plugin(plugin)
            except OSError as error:
                if scheduler_lost(client):
                    raise
                if time.monotonic() > end:
                    raise RefusedError(
                        f"The workers cannot be prepared: {error}.",
                        "Is there memory for them? What was committed stands: run the same command again.",
                    ) from error
                log.warning("a worker process died while it was prepared; all are prepared again")
            else:
                return


async def nanny_lives(client: Client, nanny: str) -> bool:
    """Whether a nanny answers, also a second later: a job's processes are not all killed at once.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    nanny : str
        Address.
    """
    try:
        async with asyncio.timeout(PING_S):
            await client.rpc(nanny).identity()
            await asyncio.sleep(1)
            await client.rpc(nanny).identity()
    except (OSError, TimeoutError):
        return False
    return True
