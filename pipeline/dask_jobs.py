"""Dask's workers as jobs of a batch system, by dask-jobqueue."""

from __future__ import annotations

import logging
import math
import re
import socket
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import dask
import psutil
from distributed import Adaptive, Client, Status

from manifests.errors import ConfigError, RefusedError
from pipeline.cluster_config import ClusterConfig, JobSettings
from pipeline.dask_cluster import UNITS_IN_FLIGHT, DaskCluster
from pipeline.dask_sites import LIBRARIES, ONE_DEATH, security_of
from pipeline.logs import log
from pipeline.worker import STARTED, Life, Prepare
from pipeline.workforce import Workforce

QUEUE_CLASSES: Final = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
LOST_S: Final = 15.0
"""A job is lost if its workers are gone for so long, in seconds; a process that died comes back sooner."""
IDLE_S: Final = 60
"""A job without work is given up after so many looks, one a second: the next stage may want it."""
OWN_LOOK: Final = {"distributed.deploy.lost-worker-timeout": "1000 days"}
"""Dask's own look at lost workers, which knows nothing of jobs of several, would cancel the job that replaced one."""


def job_of(worker: Any, *, shared: bool) -> str:
    """Name of a worker's job, which ends its own name where several workers share one."""
    name = str(worker.name)
    return name.rpartition("-")[0] if shared else name


class WholeJobs(Adaptive):  # type: ignore[misc]  # distributed has no types
    """Gives up a job only if none of its workers has work: the queue knows jobs, Dask would choose among workers."""

    async def scale_down(self, workers: Collection[Any]) -> None:
        """Leave out workers whose job has another one that is wanted."""
        idle, whole = set(workers), []
        for job, spec in self.cluster.worker_spec.items():
            members = {f"{job}{suffix}" for suffix in spec.get("group", [""])}
            whole += sorted(members) if members <= idle else []
        if whole:
            await super().scale_down(whole)


class Submissions:
    """What the batch system made of the jobs that it was given."""

    def __init__(self) -> None:
        self.taken = 0
        """Jobs that it took."""
        self.refusal = ""
        """What it last said to one that it did not take."""


class Jobs(Workforce):
    """Workers in jobs of a batch system, which may end at any time."""

    elastic = True

    def __init__(self, cluster: Any, submissions: Submissions, hint: str) -> None:
        super().__init__()
        self._cluster, self._submissions, self._hint = cluster, submissions, hint
        self._seen: dict[str, float] = {}

    @property
    def hint(self) -> str:  # type: ignore[override]
        """Where to look, and what the batch system last refused."""
        said = f" Last refused: {self._submissions.refusal}." if self._submissions.refusal else ""
        return f"{self._hint}{said}"

    def look_after(self) -> None:
        """Submit lost and refused jobs again: Dask's adaptive scaling counts a job as there until it is scaled away.

        Raises
        ------
        RefusedError
            If the batch system has not taken any job so far.
        """
        if self._submissions.refusal and not self._submissions.taken:
            raise RefusedError(
                f"The batch system does not take the workers' jobs: {self._submissions.refusal}.",
                "Correct [cluster.jobs].",
            )
        self._cluster.sync(self._replace)

    async def _replace(self) -> None:
        """In the cluster's own thread: forget jobs that are gone, and ask for as many as before."""
        now, cluster = time.monotonic(), self._cluster
        connected = {worker["name"] for worker in cluster.scheduler_info["workers"].values()}
        for name, job in list(cluster.workers.items()):
            names = {f"{name}{suffix}" for suffix in cluster.worker_spec.get(name, {}).get("group", [""])}
            if names & connected:
                self._seen[name] = now
            elif job.job_id is None or now - self._seen.get(name, now) >= LOST_S:
                self._seen.pop(name, None)
                if cluster.workers.pop(name, None) is not None:
                    with suppress(OSError, RuntimeError):  # the queue may be away for a moment, or know it no more
                        await job.close()
        cluster.scale(jobs=len(cluster.worker_spec))


@contextmanager
def job_cluster(config: ClusterConfig, logs: Path, *, gpu: bool) -> Iterator[DaskCluster]:
    """Start a scheduler here and workers as jobs of a batch system; cancel the jobs afterwards.

    Parameters
    ----------
    config : ClusterConfig
        The batch system and its jobs.
    logs : Path
        Folder for the jobs' own output; on a disk that all machines share.
    gpu : bool
        Whether workers take GPUs.

    Raises
    ------
    ConfigError
        If no interface is named, or dask-jobqueue is not installed.
    RefusedError
        If the batch system does not take a job.
    """
    settings = config.jobs_of(gpu=gpu)
    most = max(1, math.ceil(config.workers / settings.workers)) if config.workers else settings.maximum
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    submissions, queue_class = Submissions(), _queue_class(config.kind)
    with (
        dask.config.set({**ONE_DEATH, **OWN_LOOK}),
        _started(queue_class, submissions, _job_arguments(config, settings, logs, gpu=gpu)) as cluster,
        _without_keys_afterwards(cluster),
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(Prepare(Life(settings.lifetime_s, settings.stagger_s, settings.walltime_s)))
        cluster.adapt(
            Adaptive=WholeJobs,
            minimum_jobs=min(settings.minimum, most),
            maximum_jobs=most,
            wait_count=IDLE_S,
            worker_key=partial(job_of, shared=settings.workers > 1),
        )
        hint = f"Look at the queue, and at the jobs' output in {logs}."
        yield DaskCluster(client, most * settings.workers, config.retries, Jobs(cluster, submissions, hint))


def _started(queue_class: Any, submissions: Submissions, arguments: dict[str, Any]) -> Any:
    """The batch system's cluster, with a scheduler that listens.

    Raises
    ------
    ConfigError
        If it cannot be started: certificates that do not fit, or no `cryptography` to make some.
    """
    try:
        return queue_class(job_cls=_noting(queue_class.job_cls, submissions), **arguments)
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"The scheduler for the jobs cannot be started: {said}.", "Check [cluster.tls] and [cluster.jobs]."
        ) from error


@contextmanager
def _without_keys_afterwards(cluster: Any) -> Iterator[None]:
    """Remove the jobs' certificates after the run, which dask-jobqueue leaves to the garbage collector."""
    try:
        yield
    finally:
        for part in ("ca_file", "cert", "key"):
            file = getattr(cluster, f"_job_{part}", None)
            if file is not None:
                file.close()


def _queue_class(kind: str) -> Any:
    try:
        module = import_module("dask_jobqueue")
    except ModuleNotFoundError:
        fix = "Install it: pip install 'medfocus[jobs]'"
        raise ConfigError(f"--cluster {kind} needs dask-jobqueue, which is not installed.", fix) from None
    return getattr(module, QUEUE_CLASSES[kind])


def _noting(job_class: Any, submissions: Submissions) -> Any:
    """The batch system's class of jobs; that one is not taken is noted, and is no error that nobody would catch."""

    class Noting(job_class):  # type: ignore[misc]  # dask_jobqueue has no types
        async def start(self) -> None:
            try:
                await super().start()
                submissions.taken += 1
            except (OSError, RuntimeError, ValueError) as error:
                words = str(error).rpartition("stderr:\n")[2].strip() or "it does not say why"
                submissions.refusal = "; ".join(words.splitlines())
                log.debug("no job: %s", error)
                self.status = Status.running

    return Noting


def _job_arguments(config: ClusterConfig, settings: JobSettings, logs: Path, *, gpu: bool) -> dict[str, Any]:
    """What dask-jobqueue is told; keys that are left out come from the site's own jobqueue.yaml."""
    _check_interface(settings.interface)
    _check_written(config, settings, logs)
    threads = [f"export {name}_NUM_THREADS={config.threads}" for name in LIBRARIES]
    quiet = "export DASK_LOGGING__DISTRIBUTED=warning"
    started = f"export {STARTED}=$(date +%s)"
    arguments: dict[str, Any] = {
        "cores": settings.cores,
        "memory": settings.memory,
        "processes": settings.workers,
        "walltime": settings.walltime.rpartition(":")[0] if config.kind == "lsf" else settings.walltime,
        "interface": settings.interface,
        "job_name": "medfocus-gpu" if gpu else "medfocus-cpu",
        "job_script_prologue": [started, *threads, quiet, *settings.prologue],
        "log_directory": str(logs),
        "shared_temp_directory": str(logs),
        "scheduler_options": {"interface": settings.interface, "dashboard_address": "127.0.0.1:0"},
        "worker_extra_args": [
            *("--nthreads", str(UNITS_IN_FLIGHT if gpu else 1)),
            *("--dashboard-address", "127.0.0.1:0"),
            *(("--resources", "GPU=1") if gpu else ()),
        ],
        "silence_logs": logging.CRITICAL,
    }
    if not config.insecure:
        arguments["security"] = security_of(config) if config.tls.given else True
    if settings.queue:
        arguments["queue"] = settings.queue
    if settings.account:
        arguments["project" if config.kind in ("lsf", "sge") else "account"] = settings.account
    if settings.local_directory:
        arguments["local_directory"] = settings.local_directory
    return arguments | _gpu_arguments(config.kind, settings)


def _gpu_arguments(kind: str, settings: JobSettings) -> dict[str, Any]:
    """How each batch system is asked for GPUs, and the site's own directives."""
    own = list(settings.directives)
    if not settings.gpus:
        return {"job_extra_directives": own}
    if kind == "pbs":
        memory = settings.memory.replace(" ", "").lower()
        spec = f"select=1:ncpus={settings.cores}:ngpus={settings.gpus}:mem={memory}"
        return {"resource_spec": spec, "job_extra_directives": own}
    asked = {"slurm": f"--gres=gpu:{settings.gpus}", "lsf": f'-gpu "num={settings.gpus}"'}
    return {"job_extra_directives": [asked.get(kind, f"-l gpu={settings.gpus}"), *own]}


def _check_written(config: ClusterConfig, settings: JobSettings, logs: Path) -> None:
    """Refuse paths that dask-jobqueue, which quotes nothing, would write into a script that means something else."""
    tls = config.tls
    for path in (logs, sys.executable, settings.local_directory, tls.ca or "", tls.cert or "", tls.key or ""):
        if wrong := re.search(r"[^\w./@%+=:,-]", str(path)):
            raise ConfigError(
                f"{str(path)!r} has {wrong[0]!r}, which a job's script cannot hold.", "Use folders without such names."
            )
    if settings.lifetime_s - settings.stagger_s <= 0:
        raise ConfigError(
            f"cluster.jobs.walltime = {settings.walltime!r} leaves nothing before margin_s = {settings.margin_s:g} and "
            f"stagger_s = {settings.stagger_s:g}.",
            "Give jobs more time, or shorten the margin to what a unit takes.",
        )


def _check_interface(name: str) -> None:
    """Refuse to listen anywhere but on a named interface of this machine."""
    found = {
        key: address.address
        for key, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
    }
    if name not in found:
        known = ", ".join(f"{key} ({address})" for key, address in sorted(found.items()))
        what = f"{name!r}, which is not here" if name else "not given"
        raise ConfigError(
            f"cluster.jobs.interface is {what}: scheduler and workers listen on one interface alone.",
            f"Name the one that the nodes reach; of this machine: {known}.",
        )
