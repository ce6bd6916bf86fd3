"""What a batch system is asked for, in dask-jobqueue's words."""

from __future__ import annotations

import logging
import re
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from manifests.errors import ConfigError
from pipeline.cluster_config import ClusterConfig, JobSettings
from pipeline.dask_cluster import UNITS_IN_FLIGHT
from pipeline.dask_sites import LIBRARIES, security_of
from pipeline.worker import STARTED


def job_arguments(config: ClusterConfig, settings: JobSettings, logs: Path, *, gpu: bool) -> dict[str, Any]:
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
