"""The `[cluster]` table: where units run, how jobs are asked for, and who may connect."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.base import Settings

QUEUES = ("slurm", "pbs", "lsf", "sge")
"""Batch systems that dask-jobqueue knows and that can be named."""
Kind = Literal["auto", "inline", "local", "slurm", "pbs", "lsf", "sge"]


class JobSettings(Settings):
    """One batch job that holds worker processes, and how many such jobs there may be."""

    queue: str = ""
    """Partition or queue; empty for the site's default."""
    account: str = ""
    """Account or project that is charged; empty for the site's default."""
    walltime: str = "04:00:00"
    """Longest life of a job, as `HH:MM:SS`."""
    cores: int = Field(default=4, ge=1)
    """Processor cores of a job."""
    memory: str = Field(default="16GB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")
    """Memory of a job."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of a job; it then holds one worker process for each."""
    processes: int = Field(default=1, ge=1)
    """Worker processes of a job without GPUs."""
    directives: tuple[str, ...] = ()
    """Further lines of the job's header, such as `--constraint=a100`."""
    prologue: tuple[str, ...] = ()
    """Shell commands before the worker starts, such as `module load cuda`."""
    interface: str = ""
    """Network interface, such as `ib0`, that the scheduler and the workers listen on, and no other; needed."""
    local_directory: str = ""
    """Folder on the node's own disk for Dask's temporary files; empty for the site's default."""
    minimum: int = Field(default=1, ge=0)
    """Jobs that are kept while there is work."""
    maximum: int = Field(default=4, ge=1)
    """Jobs that may run or wait in the queue at once."""
    margin_s: float = Field(default=300.0, gt=10)
    """A worker takes no further unit this long before its walltime, in seconds: longer than a unit takes.

    A submitted job is told of its walltime so early too.
    """
    stagger_s: float = Field(default=60.0, ge=0)
    """Workers end up to so much earlier still, so that not all end at once."""

    @field_validator("walltime", mode="before")
    @classmethod
    def _from_toml(cls, value: object) -> object:
        """TOML reads 04:00:00 without quotes as a time of the day."""
        return value.isoformat() if isinstance(value, datetime.time) else value

    @field_validator("walltime")
    @classmethod
    def _is_time(cls, value: str) -> str:
        if not re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", value):
            raise ValueError("walltime is of the form HH:MM:SS")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    @property
    def walltime_s(self) -> int:
        """Longest life of a job, in seconds."""
        hours, minutes, seconds = (int(part) for part in self.walltime.split(":"))
        return 3600 * hours + 60 * minutes + seconds

    @property
    def memory_mb(self) -> int:
        """Memory of a job, in units of 1024 x 1024 bytes, rounded up."""
        size = self.memory.rstrip("KMGTiB ")
        unit = self.memory[len(size) :].strip()
        base = 1024 if "i" in unit else 1000
        return math.ceil(float(size) * float(base) ** ("KMGT".index(unit[0]) + 1) / 2**20)

    @property
    def lifetime_s(self) -> float:
        """When a worker takes no further unit, in seconds after its start."""
        return self.walltime_s - self.margin_s

    @property
    def workers(self) -> int:
        """Worker processes of a job."""
        return self.gpus or self.processes


class TlsSettings(Settings):
    """Files in PEM form that scheduler, workers and driver show each other; all three, or none."""

    ca: Path | None = None
    """Certificate of the authority that signed `cert`."""
    cert: Path | None = None
    key: Path | None = None
    """Private key of `cert`; nobody else may read it."""

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = [name for name in ("ca", "cert", "key") if getattr(self, name) is not None]
        if given and len(given) < 3:
            raise ValueError(f"ca, cert and key go together; only {', '.join(given)} is given")
        return self

    @property
    def given(self) -> bool:
        """Whether files are named."""
        return self.key is not None


class ClusterConfig(Settings):
    """Where units run; outside every fingerprint."""

    kind: Kind = "auto"
    """`auto` is `local` where there is a GPU or several cores, else `inline`; the last four ask a batch system."""
    scheduler: str = ""
    """Address of a Dask scheduler that stands already, `tcp://...` or `tls://...`; no other is started."""
    scheduler_file: Path | None = None
    """The file that such a scheduler wrote (`dask scheduler --scheduler-file F`)."""
    workers: int = Field(default=0, ge=0)
    """Worker processes; 0 means one a GPU, else one a core (at most 8). Of a batch system, the most."""
    threads: int = Field(default=1, ge=1)
    """Threads of each worker's numeric libraries; results are compared bit by bit only at equal counts."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_items: int = Field(default=8, ge=1)
    """Images that go through a model at once; halved for good where a GPU's memory runs out."""
    compiled: bool = False
    """Image encoders go through torch.compile: up to minutes at the start of each worker."""
    retries: int = Field(default=2, ge=0)
    """Further attempts at a unit whose worker died or whose code raised."""
    grace_s: float = Field(default=60.0, ge=0)
    """After SIGTERM or SIGUSR1, units in flight may take this long to finish, in seconds."""
    insecure: bool = False
    """Speak to schedulers and workers on other machines without TLS: whoever reaches them can run code as you."""
    tls: TlsSettings = TlsSettings()
    jobs: JobSettings = JobSettings()
    """Jobs of a batch system; for stages with a model if `cpu_jobs` is given too."""
    cpu_jobs: JobSettings | None = None
    """Jobs for stages that need no GPU; without it, jobs like `jobs`, but without GPUs."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.scheduler and self.scheduler_file:
            raise ValueError("scheduler and scheduler_file name two clusters; give one")
        if self.stands and self.kind != "auto":
            raise ValueError(f"kind {self.kind!r} starts a cluster, but one is named that stands already")
        if self.scheduler and not re.match(r"(tcp|tls)://\S+:\d+$", self.scheduler):
            raise ValueError("scheduler is tcp://HOST:PORT or tls://HOST:PORT, which this is not")
        return self

    @property
    def stands(self) -> bool:
        """Whether the cluster is there already."""
        return bool(self.scheduler or self.scheduler_file)

    @property
    def is_queue(self) -> bool:
        """Whether workers are jobs of a batch system."""
        return self.kind in QUEUES

    def jobs_of(self, *, gpu: bool) -> JobSettings:
        """The jobs whose workers run units with a model on a GPU, or all others."""
        if gpu or not self.jobs.gpus:
            return self.jobs
        return self.cpu_jobs or self.jobs.model_copy(update={"gpus": 0})
