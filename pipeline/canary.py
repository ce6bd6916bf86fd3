"""The first process that loads a stage's model records what it makes of the canary; every other must agree."""

from __future__ import annotations

import errno
import json
import os
import platform
import uuid
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from manifests.disk import PARTIAL, disk_errors, place, write_synced
from manifests.errors import RefusedError
from stages.base import MapStage
from stages.canary import TOLERANCE, distance

DIGITS: Final = 6
"""Of a recorded number."""
NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without hard links say; there the last of several first processes is the one recorded."""


class CanaryError(RefusedError):
    """This process' model makes something else of the canary than the one whose results are in the store."""


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
