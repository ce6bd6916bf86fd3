"""Whether this machine and this work folder can run the pipeline: one line a check."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manifests.disk import sync_folder, write_synced
from manifests.errors import PipelineError
from manifests.runs import PACKAGES, installed_versions
from pipeline.canary import device_name
from pipeline.cluster import choose_device
from pipeline.cluster_config import ClusterConfig
from pipeline.config import RunConfig
from pipeline.contend import KILLS, WRITERS, try_file_system
from pipeline.gpus import device_here, visible_gpus
from stages.canary import TOLERANCE, canary_image, distance, known_canary
from stages.models.weights import WeightsFolder

MIN_FREE_BYTES = 2 * 2**30
SYNCS = 20
SLURM_PROGRAMS = ("sbatch", "sinfo", "scontrol")
"""What submitting, looking at the queue and requeueing need."""


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    ok: bool
    detail: str


def examine(workdir: Path, config: RunConfig) -> Iterator[Check]:
    """Yield one check after the other; none changes anything that stays.

    Parameters
    ----------
    workdir : Path
        The work folder; need not exist yet.
    config : RunConfig
        Decides which models' weights are looked for.
    """
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0])
    versions = installed_versions()
    for package in PACKAGES:
        yield Check(package, package in versions, versions.get(package, "not installed; run: make setup"))
    yield _attempt("devices", lambda: _devices(config.cluster))
    yield _attempt("canary", lambda: _canary(config))
    for model in sorted({config.proposals.model, config.embeddings.model}):
        yield _attempt(f"weights {model}", lambda model=model: _weights(model))  # type: ignore[misc]
    yield _attempt("free space", lambda: _free_space(workdir))
    yield _attempt("rename semantics", lambda: _in_probe(workdir, _rename))
    yield _attempt("fsync", lambda: _in_probe(workdir, _fsync))
    yield _attempt("kills", lambda: _in_probe(workdir, _kills))
    if config.cluster.kind == "slurm":
        yield _attempt("slurm", _slurm)
    elif any(shutil.which(program) for program in SLURM_PROGRAMS):
        found = _attempt("slurm", _slurm)
        usable = "usable" if found.ok else "not usable"
        yield Check("slurm", ok=True, detail=f"{found.detail} ({usable}; cluster.kind is {config.cluster.kind})")
    if config.cluster.stands:
        yield _attempt("scheduler", lambda: _scheduler(config.cluster))


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, ok=True, detail=check())
    except (PipelineError, OSError, RuntimeError) as error:
        return Check(name, ok=False, detail=str(error))


def _devices(config: ClusterConfig) -> str:
    """What is here; an error where a run would refuse to go without the GPU that it was promised."""
    if config.device == "cuda":
        choose_device(config)
    return f"{len(visible_gpus())} CUDA devices, {len(os.sched_getaffinity(0))} CPU cores"


def _weights(model: str) -> str:
    WeightsFolder().check(model)
    digests = WeightsFolder().digests(model)
    return ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(digests.items())) or "no weights needed"


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free_space(workdir: Path) -> str:
    free = shutil.disk_usage(_existing(workdir)).free
    if free < MIN_FREE_BYTES:
        raise OSError(f"{free / 2**30:.1f} GiB free; stage one needs some 0.1 MiB an image, and 2 GiB to be safe")
    return f"{free / 2**30:.1f} GiB free"


def _in_probe(workdir: Path, check: Callable[[Path], str]) -> str:
    """Run a check in a folder of its own on the work folder's file system."""
    probe = _existing(workdir) / f".doctor-{uuid.uuid4().hex}"
    probe.mkdir()
    try:
        return check(probe)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _rename(probe: Path) -> str:
    """A rename onto a folder that is not empty must fail: the commit protocol rests on it."""
    for name in ("first", "second"):
        (probe / name).mkdir()
        (probe / name / "file").write_text(name)
    (probe / "first").rename(probe / "target")
    try:
        (probe / "second").rename(probe / "target")
    except OSError:
        return "at most one rename wins"
    raise OSError("a folder rename replaced another: this file system cannot hold a store")


def _fsync(probe: Path) -> str:
    """Files and folders can be made safe from a power cut; how long that takes."""
    seconds = []
    for number in range(SYNCS):
        began = time.perf_counter()
        write_synced(probe / str(number), bytes(4096))
        sync_folder(probe)
        seconds.append(time.perf_counter() - began)
    return f"{1000 * statistics.median(seconds):.1f} ms for a file and its folder"


def _kills(probe: Path) -> str:
    began = time.perf_counter()
    units = try_file_system(probe / "store")
    seconds = time.perf_counter() - began
    return f"{units} units by {WRITERS} writers, of which {KILLS} were killed: none lost or torn ({seconds:.0f} s)"


def _slurm() -> str:
    for program in SLURM_PROGRAMS:
        if shutil.which(program) is None:
            raise OSError(f"{program} is not here: submit from a machine of the cluster")
    try:
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        raise OSError("scontrol ping does not answer within 30 s") from None
    said = " ".join((done.stdout + done.stderr).split())
    if done.returncode or "UP" not in said:
        raise OSError(f"scontrol ping: {said}")
    return said


def _scheduler(config: ClusterConfig) -> str:
    from pipeline.dask_sites import look_at_standing

    standing = look_at_standing(config)
    return f"{standing.workers} workers, {'with' if standing.gpus else 'without'} GPUs"


def _canary(config: RunConfig) -> str:
    """The model that makes embeddings sees the canary as it did when its vector was recorded, if it was."""
    from stages.models.clip import load_clip

    model, device = config.embeddings.model, device_here(config.cluster.device)
    known, here = known_canary(model), device_name(device)
    features = known.features if known else config.embeddings.features
    clip = load_clip(model, device, config.embeddings.precision)
    vector = np.asarray(clip.encode_image([canary_image()], features, tokens=False).vectors[0])
    if known is None:
        return f"{model} gives {len(vector)} numbers on {here}; no known vector to compare with"
    off, limit = distance(vector, known.vector), TOLERANCE[config.embeddings.precision]
    if not off <= limit:
        raise OSError(f"{model} on {here} is {off:.2g} from the known vector, tolerance {limit:g}")
    return f"{model} on {here} is {off:.1g} from the known vector (tolerance {limit:g})"
