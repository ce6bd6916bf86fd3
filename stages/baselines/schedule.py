"""What a training of prompts is given, and which images it sees at what learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifests.errors import ConfigError
from stages.baselines.prompts import Prompts

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
WARM_UP_RATE: Final = 1e-5
"""Of the first epoch; then a cosine over all epochs."""
BATCH: Final = 32
FEW, SOME, MANY = 50, 100, 200
"""Epochs of CoOp for one image a class, for up to four, and for more; also the first where images are many."""
MANY_IMAGES: Final = 1000


class Steps(NamedTuple):
    """Schedule of a training."""

    rate: float
    """Learning rate after the first epoch."""
    epochs: int
    """The last epoch's weights are kept."""
    batch: int
    """Images a step."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One training of prompts."""

    prompts: Prompts
    """Changed in place."""
    images: NDArray[np.float32]
    """Unit vectors of the training subset, (n, D)."""
    labels: NDArray[np.int64]
    """Class index of each image, (n,)."""
    steps: Steps
    seed: int
    """Of the order of images."""

    def epochs(self) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
        """Learning rate of each epoch, and the rows of each of its steps."""
        rate, epochs, batch = self.steps
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in range(epochs):
            cosine = float(rate * (1 + np.cos(np.pi * epoch / epochs)) / 2)
            order = torch.randperm(len(self.labels), generator=generator)
            yield WARM_UP_RATE if epoch == 0 and epochs > 1 else cosine, torch.split(order, batch)


def coop_epochs(n_images: int, n_classes: int) -> int:
    """Epochs of CoOp by the number of images a class, as the authors have them for shots."""
    each = n_images / n_classes
    if each <= 1 or n_images >= MANY_IMAGES:
        return FEW
    return SOME if each <= 4 else MANY


def checked_loss(loss: float) -> float:
    """Return a loss that is finite.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if not np.isfinite(loss):
        raise ConfigError(f"The loss of the prompts is {loss}.", "Lower the learning rate of [baselines].")
    return loss
