"""Batches in parts that fit a device's memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

SHARE: Final = 0.8
"""Of the free memory, that a batch may take: allocations leave gaps."""


def keep_float32() -> None:
    """Let GPUs multiply float32 as float32: convolutions would else drop 13 bits of it (TF32), and CPUs do not."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def free_bytes(device: torch.device) -> float:
    """Memory of a GPU that nothing holds, what torch keeps for itself included; infinite for a CPU."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def most_that_fit(bytes_each: int, device: torch.device) -> float:
    """Items that a call may hold; at least one, infinitely many on a CPU."""
    return max(1.0, SHARE * free_bytes(device) / bytes_each)


def in_parts_that_fit(forward: Callable[[Tensor], Any], batch: Tensor, bytes_each: int) -> list[Any]:
    """Run a model on a batch, or on consecutive parts of it, if there is no room for all of it.

    Parameters
    ----------
    forward : Callable[[Tensor], Any]
        Called with the batch or with its parts.
    batch : Tensor, (B, ...)
        B is at least 1.
    bytes_each : int
        What an item is expected to take; where it takes more, `stages.batches` halves the batch.

    Returns
    -------
    list[Any]
        What `forward` gave, in order; one entry if the whole batch fits.
    """
    size = int(min(len(batch), most_that_fit(bytes_each, batch.device)))
    return [forward(part) for part in torch.split(batch, size)]
