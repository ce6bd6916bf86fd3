"""Dask's workers as jobs of a batch system, by dask-jobqueue."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import dask
from distributed import Adaptive, Client, Status

from manifests.errors import ConfigError, RefusedError
from pipeline.cluster_config import ClusterConfig
from pipeline.dask_client import nanny_lives
from pipeline.dask_cluster import DaskCluster
from pipeline.dask_sites import OWN_RULES
from pipeline.job_arguments import job_arguments
from pipeline.logs import log
from pipeline.worker import Life, Prepare
from pipeline.workforce import Workforce

QUEUE_CLASSES: Final = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
LOST_S: Final = 15.0
"""A job whose workers are gone for so long, in seconds, is lost if none of their nannies lives to start one anew."""
MOST_MISSED: Final = 2
"""Looks in a row at which no nanny of a job answers before it is lost: a busy node may miss one."""
HOPELESS_S: Final = 600.0
"""A job is lost if its workers are gone for so long, in seconds, whatever lives."""
IDLE_S: Final = 60
"""A job without work is given up after so many looks, one a second: the next stage may want it."""


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


@dataclass(slots=True)
class Past:
    """What is known of a job."""

    seen: float = math.inf
    """When a worker of it was last there; infinity before one came."""
    nannies: set[str] = field(default_factory=set)
    """Those that its workers have had."""
    missed: int = 0
    """Looks in a row at which none of them answered."""


class Jobs(Workforce):
    """Workers in jobs of a batch system, which may end at any time."""

    elastic = True

    def __init__(self, client: Client, cluster: Any, submissions: Submissions, hint: str) -> None:
        super().__init__()
        self._client, self._cluster, self._submissions, self._hint = client, cluster, submissions, hint
        self._past: WeakKeyDictionary[Any, Past] = WeakKeyDictionary()
        """Of each of Dask's jobs, not of names, which are given again; Dask wants jobs forgotten when it closes."""

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
        nannies = {worker["name"]: worker["nanny"] for worker in cluster.scheduler_info["workers"].values()}
        lost, silent = [], []
        for name, job in cluster.workers.items():
            past = self._past.setdefault(job, Past())
            names = {f"{name}{suffix}" for suffix in cluster.worker_spec.get(name, {}).get("group", [""])}
            if connected := names & nannies.keys():
                past.seen, past.missed = now, 0
                past.nannies |= {nannies[worker] for worker in connected} - {None}
            elif job.job_id is None or now - past.seen >= HOPELESS_S:
                lost.append((name, job))
            elif now - past.seen >= LOST_S:
                silent.append((name, job))
        lives = await asyncio.gather(*(self._lives(job) for _, job in silent))
        for (name, job), alive in zip(silent, lives, strict=True):
            self._past[job].missed = 0 if alive else self._past[job].missed + 1
            if self._past[job].missed >= MOST_MISSED:
                lost.append((name, job))
        for name, job in lost:
            if cluster.workers.get(name) is job:
                del cluster.workers[name]
                with suppress(OSError, RuntimeError):  # the queue may be away for a moment, or know it no more
                    await job.close()
        cluster.scale(jobs=len(cluster.worker_spec))

    async def _lives(self, job: Any) -> bool:
        """Whether a nanny of a job lives, which starts its worker anew; from a busy disk that takes a while."""
        return any(await asyncio.gather(*(nanny_lives(self._client, nanny) for nanny in self._past[job].nannies)))


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
        dask.config.set(OWN_RULES),
        _started(queue_class, submissions, job_arguments(config, settings, logs, gpu=gpu)) as cluster,
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
        yield DaskCluster(client, most * settings.workers, config.retries, Jobs(client, cluster, submissions, hint))


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
