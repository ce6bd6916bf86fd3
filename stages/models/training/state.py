"""Keeping what a training needs to go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_whole(state: Mapping[str, Any], path: Path) -> None:
    """Write a training's state so that a kill leaves the old file or the new one, never half of either."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    torch.save(dict(state), partial)
    partial.replace(path)
