"""Which processes may add to a store: with the driver's packages, and a model that sees what the first one saw."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from manifests.disk import PARTIAL, disk_errors, place, write_synced
from manifests.errors import RefusedError
from manifests.runs import installed_versions
from stages.base import MapStage
from stages.canary import TOLERANCE, distance

DIGITS: Final = 6
"""Of a recorded number."""
NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without hard links say; there the last of several first processes is the one recorded."""


class WorkerRefusedError(RefusedError):
    """This process would mix other numbers into the store; another may do the work."""

    worker = ""
    """Address of the Dask worker that refuses, once its answer leaves it: an answer is copied when its worker goes."""


class CanaryError(WorkerRefusedError):
    """This process' model makes something else of the canary than the one whose results are in the store."""


class BrokenGpuError(WorkerRefusedError):
    """This process can use its GPU no more, whatever it computes; a new process may."""


BROKEN: Final = ("CUDA error:", "cuDNN error:")
"""What torch's messages hold once a kernel has failed and the process' context is lost."""


def broken_gpu(error: RuntimeError) -> bool:
    """Whether the error is a CUDA one that ends all work of its process; memory that does not suffice is none."""
    import torch

    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)  # of torch 2.8 and later
    return (accelerator is not None and isinstance(error, accelerator)) or any(sign in str(error) for sign in BROKEN)


def check_versions(wanted: Mapping[str, str]) -> None:
    """Compare the packages of this process with those of the driver.

    Parameters
    ----------
    wanted : Mapping[str, str]
        Versions by package; empty for no comparison.

    Raises
    ------
    WorkerRefusedError
        If one differs; names it.
    """
    own = _versions() if wanted else wanted
    differing = [f"{name} {own.get(name, 'missing')}" for name in wanted if own.get(name) != wanted[name]]
    if differing:
        has = ", ".join(f"{name} {wanted[name]}" for name in wanted if own.get(name) != wanted[name])
        raise WorkerRefusedError(
            f"A worker has {', '.join(differing)}; the driver has {has}.",
            "Start workers from the driver's environment.",
        )


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return installed_versions()


def device_name(device: str) -> str:
    """The processor or GPU and the version of torch, such as `NVIDIA H100 80GB HBM3, torch 2.9.1`; no host name."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else _processor()
    return f"{name}, torch {torch.__version__}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def meet_canary(folder: Path, stage: MapStage, precision: str, device: str) -> None:
    """Compare a freshly loaded model with the first one under this fingerprint; be the first if there is none.

    Parameters
    ----------
    folder : Path
        The fingerprint's folder; canary.json in it is written once.
    stage : MapStage
        Loaded.
    precision : str
        Decides the tolerance.
    device : str
        `cpu` or `cuda`.

    Raises
    ------
    CanaryError
        If the vectors differ by more than the tolerance; names both devices.
    StoreError
        If the file cannot be read or written.
    """
    vector = stage.canary()
    if vector is None:
        return
    file, here = folder / "canary.json", device_name(device)
    if not 0 < float(np.linalg.norm(vector)) < math.inf:
        raise CanaryError(
            f"{stage.name} on {here} makes nothing finite of the canary image.", "Check weights and device."
        )
    first = _recorded(file) or _record(file, vector, here)
    off = distance(vector, np.array(first["vector"], np.float32))
    if not off <= TOLERANCE[precision]:
        raise CanaryError(
            f"{stage.name} on {here} sees the canary image otherwise than {first['device']}, whose results are in the "
            f"store: distance {off:.2g}, tolerance {TOLERANCE[precision]:g}.",
            "Use machines and versions that agree, or another work folder; see docs/cluster.md.",
        )


def _recorded(file: Path) -> dict[str, Any] | None:
    with disk_errors(f"read {place(file)}", file.parent):
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_bytes())
        return found


def _record(file: Path, vector: NDArray[np.float32], device: str) -> dict[str, Any]:
    """Write the record unless another process was first; return the one that stands."""
    record = {"device": device, "vector": [float(f"{value:.{DIGITS}g}") for value in vector]}
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}{PARTIAL}")
    with disk_errors(f"write {place(file)}", file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(partial, json.dumps(record).encode())
            os.link(partial, file)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    return _recorded(file) or record
