"""Tip-Adapter and Tip-Adapter-F (Zhang et al., arXiv 2207.09519): a cache of the training vectors beside the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.splits import inner_folds
from stages.threads import one_thread

BETAS: Final = np.linspace(0.1, 7.0, 200)
ALPHAS: Final = np.linspace(0.1, 3.0, 20)
"""Grid of the authors' search."""
START_BETA, START_ALPHA = 5.5, 1.0
"""The authors' values before the search: -F trains with them, and subsets that cannot be folded keep them."""
RATE, EPSILON, EPOCHS, BATCH = 1e-3, 1e-4, 20, 256
"""Of AdamW with a cosine schedule, for -F."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys, (n, D), with the classes, (n,), that they speak for; unit vectors until they are trained."""

    keys: Tensor
    labels: Tensor
    texts: Tensor
    """Bank of class texts, (K, D) unit vectors."""
    temperature: float

    def affinity(self, images: Tensor) -> Tensor:
        """Products of images with the keys, (m, n); trained keys keep their lengths, as the authors' do."""
        return images @ self.keys.T

    def cached(self, affinity: Tensor, beta: float) -> Tensor:
        """exp(-beta (1 - f K')) L, (m, K)."""
        values = F.one_hot(self.labels, len(self.texts)).to(affinity.dtype)
        return torch.exp(-beta * (1 - affinity)) @ values

    def logits(self, images: Tensor, alpha: float, beta: float) -> Tensor:
        """tau f W + alpha exp(-beta (1 - f K')) L, (m, K)."""
        zero_shot = self.temperature * images @ self.texts.T
        return zero_shot + alpha * self.cached(self.affinity(images), beta)


@dataclass(frozen=True, slots=True)
class Tuned:
    """A cache with what the inner folds chose."""

    cache: Cache
    alpha: float
    beta: float
    held_out_accuracy: float | None
    """None where nothing was searched."""

    def probabilities(self, images: NDArray[np.float64]) -> NDArray[np.float64]:
        """Softmax of the logits, (m, K)."""
        with torch.no_grad():
            logits = self.cache.logits(torch.from_numpy(images), self.alpha, self.beta)
            found: NDArray[np.float64] = logits.double().softmax(dim=1).numpy()
        return found


@dataclass(frozen=True, slots=True)
class Subset:
    """A training subset."""

    images: NDArray[np.float64]
    """(n, D) unit vectors, without augmentation: the authors average ten augmented passes."""
    labels: NDArray[np.int64]
    """Class index of each image, (n,)."""
    groups: Sequence[str]
    """group_id of each image; a group stays in one fold."""


def tip_adapter(
    subset: Subset, texts: NDArray[np.float64], temperature: float, *, folds: int, seed: int, trained: bool
) -> Tuned:
    """Build the cache of a training subset, alpha and beta by inner folds; the authors' search read the test set.

    Of the pairs with the highest held-out accuracy, the one with the least held-out log-loss is taken; for -F each
    fold trains its own keys.

    Parameters
    ----------
    subset : Subset
        n images.
    texts : ndarray of float64, (K, D)
        Bank of class texts, unit vectors of the same space.
    temperature : float
        tau.
    folds : int
        Inner folds.
    seed : int
        Of the folds and of the order of batches.
    trained : bool
        Train the keys (-F).
    """
    with one_thread():
        x, t, y = (torch.from_numpy(a) for a in (subset.images, texts, subset.labels))

        def build(rows: Tensor) -> Cache:
            cache = Cache(x[rows], y[rows], t, temperature)
            return _train(cache, seed) if trained else cache

        cache = build(torch.arange(len(y)))
        parts = inner_folds(subset.labels, subset.groups, folds, seed)
        if parts is None:
            return Tuned(cache, START_ALPHA, START_BETA, None)
        held = [(build(torch.from_numpy(fit)), torch.from_numpy(out)) for fit, out in parts]
        return _choose(cache, [(c, x[rows], y[rows]) for c, rows in held])


def _choose(cache: Cache, held: Sequence[tuple[Cache, Tensor, Tensor]]) -> Tuned:
    """Search the grid of alpha and beta on held-out images."""
    n = sum(len(y) for _, _, y in held)
    best = (-1.0, 0.0, START_ALPHA, START_BETA)
    with torch.no_grad():
        fixed = [(c, c.temperature * x @ c.texts.T, c.affinity(x), y) for c, x, y in held]
        alphas = torch.from_numpy(ALPHAS).view(-1, 1, 1)
        for beta in BETAS.tolist():
            logits = [zero_shot + alphas * c.cached(affinity, beta) for c, zero_shot, affinity, _ in fixed]
            right = sum((z.argmax(dim=2) == y).sum(dim=1) for z, (*_, y) in zip(logits, fixed, strict=True))
            logs = [z.log_softmax(dim=2) for z in logits]
            loss = -sum(z[:, torch.arange(len(y)), y].sum(dim=1) for z, (*_, y) in zip(logs, fixed, strict=True))
            for alpha, hits, lost in zip(ALPHAS.tolist(), torch.as_tensor(right), torch.as_tensor(loss), strict=True):
                best = max(best, (float(hits) / n, -float(lost) / n, alpha, beta), key=lambda b: b[:2])
    return Tuned(cache, best[2], best[3], best[0])


def _train(cache: Cache, seed: int) -> Cache:
    """Train the keys at the starting alpha and beta; the last epoch's are taken, not the best on any held-out set.

    In float32: nearly all the time goes into products of images and keys.
    """
    images = cache.keys.float()
    keys = images.clone().requires_grad_()
    learned = Cache(keys, cache.labels, cache.texts.float(), cache.temperature)
    optimizer = torch.optim.AdamW([keys], lr=RATE, eps=EPSILON)
    batches = -(-len(keys) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(keys), generator=generator), BATCH):
            loss = F.cross_entropy(learned.logits(images[rows], START_ALPHA, START_BETA), cache.labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return Cache(keys.detach().double(), cache.labels, cache.texts, cache.temperature)
