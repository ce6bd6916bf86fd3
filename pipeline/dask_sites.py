"""Dask's workers on this machine, or of a cluster that stands already."""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import dask
from distributed import Client, LocalCluster, Security, Status

from manifests.errors import ConfigError, RefusedError
from pipeline.cluster_config import ClusterConfig
from pipeline.dask_client import asking, prepare_workers
from pipeline.dask_cluster import UNITS_IN_FLIGHT, DaskCluster
from pipeline.logs import log
from pipeline.worker import Prepare
from pipeline.workforce import LastWords, Workforce

LIBRARIES: Final = ("OMP", "MKL", "OPENBLAS")
ROLES: Final = ("client", "scheduler", "worker")
CONNECT_S: Final = 30
"""Patience with a scheduler that does not answer, in seconds."""
STARTS: Final = 3
"""Attempts at starting the workers of this machine: whatever kills one meanwhile is not there to stay."""
OWN_RULES: Final = {
    # Dask tells of a worker's first death; `DaskCluster` counts, because it knows whose fault a death was.
    "distributed.scheduler.allowed-failures": 0,
    # Dask's own look at lost workers would close the nanny of one that takes longer to start again, and cancel the job
    # that replaced one; a workforce looks for itself.
    "distributed.deploy.lost-worker-timeout": "1000 days",
}
ALONE_S: Final = 600.0
"""How long a run waits for workers of this machine when all are gone, in seconds."""


@contextmanager
def local_cluster(config: ClusterConfig, workers: int, scratch: str, *, gpu: bool = False) -> Iterator[DaskCluster]:
    """Start worker processes on this machine, listening on the loopback interface alone; stop them afterwards.

    Parameters
    ----------
    config : ClusterConfig
        Threads and retries.
    workers : int
        Worker processes.
    scratch : str
        Folder for Dask's own temporary files.
    gpu : bool
        Each worker takes a GPU.

    Raises
    ------
    RefusedError
        If workers die while they start or are prepared, again and again.
    """
    environment = {f"{name}_NUM_THREADS": str(config.threads) for name in LIBRARIES}
    settings = {
        **OWN_RULES,
        "distributed.nanny.pre-spawn-environ": environment,
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
            _started(workers, scratch, last_words, gpu=gpu) as cluster,
            Client(cluster) as client,
        ):
            prepare_workers(client, Prepare())
            household = Household(cluster, last_words)
            try:
                yield DaskCluster(client, workers, config.retries, household)
            finally:
                household.end_starts()
    finally:
        nanny.removeHandler(last_words)


class Household(Workforce):
    """Workers of this machine: a process that died is started anew by its nanny, and a nanny that gave up here."""

    hint = "Is there memory for them? Fewer: --workers 1."
    patience_s = ALONE_S

    def __init__(self, cluster: LocalCluster, last_words: LastWords) -> None:
        super().__init__(last_words)
        self._cluster = cluster

    def look_after(self) -> None:
        """Start nannies anew that closed by themselves, because their worker did not come up."""
        self._cluster.sync(self._replace)

    async def _replace(self) -> None:
        """In the cluster's own thread, as Dask wants it."""
        cluster = self._cluster
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(len(cluster.worker_spec))

    def dismiss(self, name: Any) -> None:
        """Start no worker in the place of this one."""
        self._cluster.worker_spec.pop(name, None)

    @property
    def elastic(self) -> bool:  # type: ignore[override]
        """Whether a worker that was not sent away may come back."""
        return bool(self._cluster.worker_spec)

    def end_starts(self) -> None:
        """Kill processes that have not come up, for which Dask would wait without end before it closes."""
        self._cluster.sync(self._end_starts)

    async def _end_starts(self) -> None:
        self._cluster.worker_spec.clear()
        for nanny in list(self._cluster._created):
            if nanny.process is not None and nanny.process.status == Status.starting and nanny.process.process:
                nanny.close_gracefully()  # else it would start another
                await nanny.process.process.kill()


def _started(workers: int, scratch: str, last_words: LastWords, *, gpu: bool) -> LocalCluster:
    for attempt in range(1, STARTS + 1):
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=UNITS_IN_FLIGHT if gpu else 1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
                resources={"GPU": 1} if gpu else None,
            )
        except RuntimeError as error:
            if attempt == STARTS:
                raise RefusedError(
                    f"The worker processes do not start: {last_words.text}.",
                    f"{Household.hint} What was committed stands.",
                ) from error
            log.warning("a worker process died while it started; all are started again")
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a cluster that stands already has to offer."""

    workers: int
    gpus: bool
    """Whether a worker has the resource `GPU`."""


class Visitors(Workforce):
    """Workers of a cluster that others started; more may come.

    Parameters
    ----------
    come_and_go : bool
        As many units are in flight as the workers of the moment can hold.
    """

    hint = "Start workers for this scheduler: dask worker ADDRESS --nthreads 1"

    def __init__(self, *, come_and_go: bool) -> None:
        super().__init__()
        self.come_and_go = come_and_go


def look_at_standing(config: ClusterConfig) -> Standing:
    """Ask a cluster that stands already for its workers.

    Raises
    ------
    ConfigError, RefusedError
        As `standing_cluster`.
    """
    with _connect(config) as client, asking(client):
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        return Standing(len(workers), any("GPU" in worker["resources"] for worker in workers))


@contextmanager
def standing_cluster(config: ClusterConfig) -> Iterator[DaskCluster]:
    """Use a cluster that stands already, and leave it standing.

    Parameters
    ----------
    config : ClusterConfig
        Address or file of the scheduler; certificates.

    Raises
    ------
    ConfigError
        If a file cannot be used, or TLS is missing where the scheduler is on another machine.
    RefusedError
        If the scheduler does not answer, or does not accept this client.
    """
    with _connect(config) as client:
        plugin = Prepare()
        try:
            prepare_workers(client, plugin)
            with asking(client):
                workers = config.workers or max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
            yield DaskCluster(client, workers, config.retries, Visitors(come_and_go=not config.workers))
        finally:
            if client.status == "running":
                try:
                    client.unregister_worker_plugin(plugin.name)
                except Exception as error:  # noqa: BLE001  what ended the run is to be said, not this
                    log.info("the workers keep what this run gave them: %s", error)


@contextmanager
def _connect(config: ClusterConfig) -> Iterator[Client]:
    address = config.scheduler or _address_in(config.scheduler_file)
    _check_encrypted(address, config)
    security = security_of(config) if address.startswith("tls://") else None
    try:
        client = Client(address, security=security, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, TypeError, ValueError) as error:
        raise RefusedError(
            f"The scheduler at {address} cannot be used: {error}.",
            "Is it running, reachable from here, and are the certificates of [cluster.tls] its own?",
        ) from error
    with client:
        yield client


def _address_in(file: Path | None) -> str:
    if file is None:
        raise ConfigError("No scheduler is named.", "Give --scheduler ADDRESS or --scheduler-file FILE.")
    try:
        return str(json.loads(file.read_text("utf-8"))["address"])
    except OSError as error:
        fix = "Start one: dask scheduler --scheduler-file FILE, on a disk that all machines share."
        raise ConfigError(f"The scheduler file {file} cannot be read: {error.strerror}.", fix) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{file} is no scheduler file.", "`dask scheduler --scheduler-file` writes one.") from None


def _check_encrypted(address: str, config: ClusterConfig) -> None:
    """Refuse to send work in the clear to another machine, unless that is asked for."""
    if address.startswith("tls://"):
        if not config.tls.given:
            raise ConfigError(f"{address} wants certificates.", "Give [cluster.tls] ca, cert and key.")
        return
    host = urlsplit(address).hostname or ""
    with suppress(OSError):
        host = socket.gethostbyname(host)
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not (local or config.insecure):
        raise ConfigError(
            f"{address} is on another machine and not encrypted: whoever reaches it can run code as you.",
            "Start the scheduler with TLS (docs/cluster.md), or accept the risk with --insecure.",
        )


def security_of(config: ClusterConfig) -> Security:
    """Certificates for every role.

    Raises
    ------
    ConfigError
        If a file is not there, or others may read the key.
    """
    tls = config.tls
    for name in ("ca", "cert", "key"):
        file: Path = getattr(tls, name)
        if not file.is_file():
            raise ConfigError(f"cluster.tls.{name} = {str(file)!r} is no file.", "Correct [cluster.tls].")
    if tls.key is not None and tls.key.stat().st_mode & 0o077:
        raise ConfigError(f"Others may read the private key {tls.key}.", f"Run: chmod 600 {tls.key}")
    files = {f"tls_{role}_{part}": str(getattr(tls, part)) for role in ROLES for part in ("cert", "key")}
    return Security(tls_ca_file=str(tls.ca), require_encryption=True, **files)
