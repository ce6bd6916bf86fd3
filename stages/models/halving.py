"""Batches that do not fit a device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_parts_that_fit(forward: Callable[[Tensor], Any], batch: Tensor) -> list[Any]:
    """Run a model on a batch, or on its halves, quarters and so on, if there is no room for all of it.

    Parameters
    ----------
    forward : Callable[[Tensor], Any]
        Called with the batch or with consecutive parts of it.
    batch : Tensor, (B, ...)
        B is at least 1.

    Returns
    -------
    list[Any]
        What `forward` gave, in order; one entry if the whole batch fits.

    Raises
    ------
    torch.OutOfMemoryError
        If there is no room for a single item.
    """
    try:
        return [forward(batch)]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    return [result for half in batch.tensor_split(2) for result in in_parts_that_fit(forward, half)]
