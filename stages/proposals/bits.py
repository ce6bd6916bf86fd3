"""Masks as packed bits, and what is counted on them: numpy on a CPU, where it counts bits, torch on other devices."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

HAS_NUMPY: Final = frozenset({"cpu"})
"""Types of device whose memory numpy can read."""


def pack(masks: Tensor) -> Tensor:
    """Pack masks along x, first pixel in the highest bit, (..., S) bool -> (..., S / 8) uint8, on their device."""
    if masks.device.type in HAS_NUMPY:
        return torch.from_numpy(np.packbits(masks.numpy(), axis=-1))
    weights = 2 ** torch.arange(7, -1, -1, device=masks.device, dtype=torch.uint8)
    packed: Tensor = (masks.view(*masks.shape[:-1], -1, 8) * weights).sum(dim=-1, dtype=torch.uint8)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`, (..., S / 8) uint8 -> (..., S) bool."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    return (packed[..., None] >> shifts & 1).bool().flatten(-2)


def areas(packed: Tensor) -> Tensor:
    """Pixels of each mask, (M, S, S / 8) uint8 -> (M,) int64."""
    if packed.device.type in HAS_NUMPY:
        return torch.from_numpy(np.bitwise_count(packed.numpy()).sum(axis=(1, 2), dtype=np.int64))
    return unpack(packed).sum(dim=(1, 2))


def boxes(packed: Tensor) -> Tensor:
    """x0, y0, x1, y1 of each mask, the last two exclusive, (M, S, S / 8) uint8 -> (M, 4) float32; zeros if empty."""
    if packed.device.type in HAS_NUMPY:
        rows = torch.from_numpy(np.bitwise_or.reduce(packed.numpy(), axis=2) > 0)
        columns = unpack(torch.from_numpy(np.bitwise_or.reduce(packed.numpy(), axis=1)))
    else:
        rows, columns = (packed > 0).any(dim=2), unpack(packed).any(dim=1)
    spans = []
    for line in (columns, rows):
        first, last = line.int().argmax(dim=1), line.shape[1] - line.flip(1).int().argmax(dim=1)
        some = line.any(dim=1)
        spans.append((first * some, last * some))
    (x0, x1), (y0, y1) = spans
    return torch.stack((x0, y0, x1, y1), dim=1).float()
