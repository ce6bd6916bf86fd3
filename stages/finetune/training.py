"""Training of a classifier on the pictures of one subset: AdamW, a cosine, crops, and early stopping on inner folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from manifests.errors import ConfigError
from stages.finetune.classifier import Classifier
from stages.finetune.settings import FinetuneSettings
from stages.models.registry import MeanStd
from stages.splits import Indices

ASPECT: Final = 4 / 3
"""Width to height of a crop lies between one over this and this."""
PREDICTED_TOGETHER: Final = 32
CPU_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """What a classifier is shown."""

    pictures: NDArray[np.uint8]
    """(n, px, px, 3)."""
    depths: Sequence[NDArray[np.float16]] = ()
    """Features of a segmenter, each (n, C, g, g); empty without SLCA."""

    def of(self, rows: Indices) -> Shown:
        """Some of the images."""
        return Shown(self.pictures[rows], [depth[rows] for depth in self.depths])


class Epoch(NamedTuple):
    """Mean losses over the images of one epoch."""

    loss: float
    held_out: float
    """After the epoch, on the held-out images; NaN where there are none."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of a training subset."""

    fit: Indices
    held: Indices
    """To choose the epoch on; may be empty."""


class Trainer:
    """Trains one classifier.

    Parameters
    ----------
    model : Classifier
        Changed in place; is moved to the device.
    settings : FinetuneSettings
        Schedule and augmentation.
    mean_std : MeanStd
        Of the backbone's pixels in 0..1.
    device : str
        Torch device.
    """

    def __init__(self, model: Classifier, settings: FinetuneSettings, mean_std: MeanStd, device: str) -> None:
        self._model = model.to(device)
        self._settings = settings
        self._device = torch.device(device)
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in mean_std)

    def train(self, shown: Shown, labels: Indices, split: Split, seed: int) -> list[Epoch]:
        """Train, and keep the weights of the epoch with the least held-out loss, or of the last if none is held out.

        Parameters
        ----------
        shown : Shown
            The training subset, n images.
        labels : ndarray of int64, (n,)
            Class index of each.
        split : Split
            Which of them are fitted, and which held out.
        seed : int
            Of the order of images and of crops.

        Returns
        -------
        list[Epoch]
            One entry an epoch.

        Raises
        ------
        ConfigError
            If the loss stops being finite.
        """
        s, generator = self._settings, torch.Generator().manual_seed(seed)
        each = -(-len(split.fit) // s.batch_items)
        epochs = max(s.epochs, -(-s.min_steps // each))
        old, new = self._model.parts()
        optimizer = torch.optim.AdamW(
            [{"params": old, "lr": s.learning_rate}, {"params": new, "lr": s.head_rate}], weight_decay=s.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, epochs * each, s.warm_up))
        truth = torch.from_numpy(labels)
        history: list[Epoch] = []
        best, best_at, kept = math.inf, 0, None
        for epoch in range(epochs):
            total = 0.0
            order = torch.from_numpy(split.fit)[torch.randperm(len(split.fit), generator=generator)]
            for rows in torch.split(order, s.batch_items):
                optimizer.zero_grad()
                total += self._descend(shown, truth, rows, random_places(len(rows), s.smallest_crop, generator, s.flip))
                optimizer.step()
                schedule.step()
            history.append(Epoch(total / len(order), self._held_out(shown, truth, split.held)))
            if not math.isfinite(total):
                raise ConfigError(
                    f"The loss of {s.model} is {total} after epoch {epoch + 1}.", "Lower finetune.learning_rate."
                )
            if history[-1].held_out < best:
                best, best_at = history[-1].held_out, epoch
                kept = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
            elif len(split.held) and epoch - best_at >= math.ceil(s.patience * epochs):
                break
        if kept is not None:
            self._model.load_state_dict(kept)
        return history

    def _descend(self, shown: Shown, truth: Tensor, rows: Tensor, places: Tensor) -> float:
        """Add the gradient of the mean loss of a batch; returns the sum of its losses.

        On a CPU a few images at a time: the maps of more leave its cache. With Lite0 at 160 px an image of 32 together
        takes half again as long as one of 8 before batch norms are folded, and as long after.
        """
        size, total = CPU_BATCH if self._device.type == "cpu" else len(rows), 0.0
        for part, place in zip(torch.split(rows, size), torch.split(places, size), strict=True):
            logits = self._logits(shown, part, place)
            loss = F.cross_entropy(logits, truth[part].to(self._device), reduction="sum")
            (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.inference_mode()
    def probabilities(self, shown: Shown) -> NDArray[np.float64]:
        """Probabilities of the whole pictures, (n, K)."""
        rows = torch.split(torch.arange(len(shown.pictures)), PREDICTED_TOGETHER)
        logits = torch.cat([self._logits(shown, part, whole(len(part))) for part in rows])
        found: NDArray[np.float64] = logits.double().softmax(dim=1).cpu().numpy()
        return found

    @torch.inference_mode()
    def _held_out(self, shown: Shown, truth: Tensor, held: Indices) -> float:
        if not len(held):
            return math.nan
        rows = torch.split(torch.from_numpy(held), PREDICTED_TOGETHER)
        logits = torch.cat([self._logits(shown, part, whole(len(part))) for part in rows])
        return float(F.cross_entropy(logits, truth[held].to(self._device)))

    def _logits(self, shown: Shown, rows: Tensor, place: Tensor) -> Tensor:
        """Logits of a part of each of some pictures."""
        chosen = rows.numpy()
        pictures = torch.from_numpy(shown.pictures[chosen]).to(self._device).permute(0, 3, 1, 2)
        pixels = (pictures.float().div_(255) - self._mean) / self._std
        there = place.to(self._device)
        if not torch.equal(place, whole(len(place))):
            pixels = crop(pixels, there)
        depths = [torch.from_numpy(depth[chosen]).to(self._device).float() for depth in shown.depths]
        logits: Tensor = self._model(pixels, there, depths)
        return logits


def rate(step: int, steps: int, warm_up: float) -> float:
    """Share of the learning rate: a linear rise, then half a cosine to zero."""
    rising = round(warm_up * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def whole(n: int) -> Tensor:
    """The whole picture, n times, as `affine_grid` has it, (n, 2, 3)."""
    return torch.eye(2, 3).expand(n, 2, 3)


def crop(pixels: Tensor, place: Tensor) -> Tensor:
    """Parts of pictures, (B, 3, px, px), at their own size, bilinearly; `place` as `random_places` gives it."""
    grid = F.affine_grid(place, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_places(n: int, smallest: float, generator: torch.Generator, flip: bool) -> Tensor:  # noqa: FBT001
    """Random crops, as `affine_grid` has them, (n, 2, 3).

    Parameters
    ----------
    n : int
        How many.
    smallest : float
        Share of the picture that a crop has at least, in (0, 1].
    generator : torch.Generator
        Source of randomness.
    flip : bool
        Mirror half of them.
    """
    draws = torch.rand(n, 5, generator=generator)
    area = smallest + (1 - smallest) * draws[:, 0]
    aspect = ASPECT ** (2 * draws[:, 1] - 1) if smallest < 1 else torch.ones(n)
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)
    middle = (1 - sides) * (2 * draws[:, 2:4] - 1)
    mirror = torch.where(draws[:, 4] < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    place = torch.zeros(n, 2, 3)
    place[:, 0, 0], place[:, 1, 1] = sides[:, 0] * mirror, sides[:, 1]
    place[:, :, 2] = middle
    return place
