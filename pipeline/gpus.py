"""Which accelerators this process may use, without importing torch."""

from __future__ import annotations

import os
from pathlib import Path


def visible_gpus() -> tuple[str, ...]:
    """Names of the CUDA devices that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(d.strip() for d in visible.split(",") if d.strip() not in ("", "-1"))
    return tuple(sorted(p.name[6:] for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()))


def device_here(wanted: str) -> str:
    """`cuda` or `cpu`, for a model in this very process, whatever the workers have; `wanted` is `cluster.device`."""
    return "cuda" if visible_gpus() and wanted != "cpu" else "cpu"
