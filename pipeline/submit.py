"""Batch scripts for Slurm: one job that drives the run, or an array of jobs that share it without a scheduler."""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from manifests.disk import make_private, write_atomic
from manifests.errors import ConfigError, RefusedError
from pipeline.cluster_config import JobSettings
from pipeline.commands import say
from pipeline.config import RunConfig
from pipeline.graph import MAP_STAGES, STAGE_CHOICES, has_model

LONGEST_NOTICE_S: Final = 65_535
"""What Slurm's `--signal` takes."""


@dataclass(frozen=True, slots=True)
class Job:
    """One batch script."""

    name: str
    """Name of the job, and of its file."""
    arguments: tuple[str, ...]
    """What follows `pipeline run`."""
    settings: JobSettings
    folder: Path
    """Where its script and its output go."""
    parts: int = 1
    """Tasks of the array; 1 is a job without one."""

    @property
    def signal_s(self) -> int:
        """The signal comes so long before the walltime, or up to a minute earlier; at most a sixth of the walltime.

        Units in flight may take three quarters of it.
        """
        return min(math.ceil(self.settings.margin_s), self.settings.walltime_s // 6, LONGEST_NOTICE_S)

    def script(self, python: str = sys.executable) -> str:
        """Text of the script; `python` runs the pipeline."""
        template = (files("pipeline") / "templates" / "job.sbatch").read_text("utf-8")
        command = [
            python,
            "-m",
            "pipeline",
            "run",
            *self.arguments,
            "--set",
            f"cluster.grace_s={3 * self.signal_s // 4}",
        ]
        part = ' --part "$SLURM_ARRAY_TASK_ID/' + f'{self.parts}"' if self.parts > 1 else ""
        environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701  a shell script
        return environment.from_string(template).render(
            job=self, settings=self.settings, command=shlex.join(command) + part
        )


def check_name(name: str) -> str:
    """Return a job's name if Slurm and the file system take it.

    Raises
    ------
    ConfigError
        If it has other characters than letters, digits, `-` and `_`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
        raise ConfigError(f"{name!r} cannot be a job's name.", "Use letters, digits, '-' and '_'.")
    return name


def plan_jobs(
    stages: Sequence[str], arguments: Sequence[str], config: RunConfig, parts: int, target: Path
) -> tuple[Job, ...]:
    """The jobs of several stages, each of which waits for the one before.

    Parameters
    ----------
    stages : Sequence[str]
        Stages in order.
    arguments : Sequence[str]
        What every `pipeline run` is given beside its stage.
    config : RunConfig
        `[cluster.jobs]` and `[cluster.cpu_jobs]` say what a job is; stages without a model, and jobs that only drive a
        batch system's workers, are ones of the CPU.
    parts : int
        Tasks of the array of a stage whose units are chunks; other stages need all parts, so they are one job each.
    target : Path
        Folder of scripts and output, and the beginning of the jobs' names: `FOLDER/NAME`.

    Returns
    -------
    tuple[Job, ...]
        One a stage.

    Raises
    ------
    ConfigError
        If an array is to drive a batch system, or a name cannot be one.
    """
    cluster = config.cluster
    drives = cluster.is_queue or cluster.stands
    if parts > 1 and drives:
        raise ConfigError(
            "An array shares the work without a scheduler, but the configuration names one.",
            "Leave out --array, or --cluster and --scheduler.",
        )
    if set(str(target)) & set('"%\n'):
        raise ConfigError(
            f"--out {str(target.parent)!r} has a character that Slurm reads otherwise.", "Choose another."
        )
    if len(set(stages)) < len(stages) or not set(stages) <= set(STAGE_CHOICES):
        raise ConfigError(
            f"--stage {', '.join(stages)}: each is one of the stages, and none comes twice.",
            f"Stages: {', '.join(STAGE_CHOICES)}.",
        )
    jobs = []
    for stage in stages:
        shared = parts if stage in (*MAP_STAGES, "one") else 1
        name = check_name(f"{target.name}-{stage}")
        settings = cluster.jobs_of(gpu=not drives and has_model(config, stage))
        own = ("--stage", stage, *arguments)
        if not drives:
            own += () if settings.gpus or cluster.workers else ("--workers", str(settings.cores))
            own += ("--set", "cluster.device=cpu") if cluster.jobs.gpus and not settings.gpus else ()
        jobs.append(Job(name, own, settings, target.parent, shared))
    return tuple(jobs)


def write_scripts(jobs: Sequence[Job]) -> Iterator[Path]:
    """Write each job's script into its folder, and yield its path; others may not read it: prologues hold secrets."""
    for job in jobs:
        file = make_private(job.folder) / f"{job.name}.sbatch"
        write_atomic(file, job.script())
        file.chmod(0o600)
        yield file


def send(scripts: Sequence[Path]) -> list[str]:
    """Submit scripts, each to start when the one before has succeeded; return the ids of the jobs.

    Raises
    ------
    RefusedError
        If Slurm is not here, or does not take one; the message says which jobs were taken.
    """
    ids: list[str] = []
    for script in scripts:
        after = [f"--dependency=afterok:{ids[-1]}", "--kill-on-invalid-dep=yes"] if ids else []
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", *after, str(script)], capture_output=True, text=True, check=True, timeout=120
            )
        except FileNotFoundError:
            raise RefusedError("There is no sbatch here.", "Submit from a machine of the cluster.") from None
        except subprocess.SubprocessError as error:
            said = (getattr(error, "stderr", "") or str(error)).strip()
            taken = f" Submitted before: {', '.join(ids)}." if ids else ""
            raise RefusedError(
                f"sbatch does not take {script.name}: {said}.{taken}", "Correct [cluster.jobs]."
            ) from None
        ids.append(done.stdout.strip().partition(";")[0])
    return ids


def do_submit(
    stages: Sequence[str], arguments: Sequence[str], config: RunConfig, *, parts: int, target: Path, really: bool
) -> None:
    """Write a batch script a stage, submit them if that is asked for, and say how to."""
    scripts = list(write_scripts(plan_jobs(stages, arguments, config, parts, target)))
    say(f"Wrote {script}" for script in scripts)
    if really:
        jobs = send(scripts)
        say(f"Submitted {script.stem} as job {job}" for script, job in zip(scripts, jobs, strict=True))
    else:
        say(["Submit them with --send, or by hand, each with --dependency=afterok: and the id of the one before."])
