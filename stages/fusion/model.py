"""Training of F(T, I) and the head C on cached vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from manifests.errors import ConfigError
from stages.features import unit_rows
from stages.focus import NORM_EPSILON, FocusWeights, attention, text_span
from stages.fusion.loss import contrastive_loss
from stages.fusion.settings import FusionSettings
from stages.threads import one_thread


@dataclass(frozen=True, slots=True)
class EpochLoss:
    """Mean losses over the images of one epoch."""

    loss: float
    contrastive: float
    cross_entropy: float


class FocusModel(nn.Module):
    """M = LayerNorm(I + W(A T)) and the head C = Linear(D -> K), trainable.

    W, (D, D) and zero at the start, meets nothing but mixtures A T of the K texts, so it is kept as W = V Q with Q the
    orthonormal basis of the texts' span, (r, D), fixed, and V, (D, r), trained: the same functions M, a hundred times
    fewer numbers. See ``docs/decisions/0003-fusion-in-the-span-of-the-texts.md``.

    Parameters
    ----------
    texts : ndarray of float32, (K, D)
        Bank of class texts T.
    temperature : float
        tau.
    generator : torch.Generator
        Source of the head's initial weights.
    """

    def __init__(self, texts: NDArray[np.float32], temperature: float, generator: torch.Generator) -> None:
        super().__init__()
        classes, width = texts.shape
        bound = 1 / math.sqrt(width)
        self.temperature = temperature
        self.texts = torch.from_numpy(unit_rows(texts).astype(np.float32))
        self.span = torch.from_numpy(text_span(texts).astype(np.float32))
        self.mixing = nn.Parameter(torch.zeros(width, len(self.span)))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        self.head_weight = nn.Parameter((2 * torch.rand(classes, width, generator=generator) - 1) * bound)
        self.head_bias = nn.Parameter((2 * torch.rand(classes, generator=generator) - 1) * bound)

    def forward(self, images: Tensor, mixtures: Tensor) -> Tensor:
        """M of a batch.

        Parameters
        ----------
        images : Tensor of float32, (B, D)
            I, L2-normalised.
        mixtures : Tensor of float32, (B, r)
            A T in the coordinates of the span.

        Returns
        -------
        Tensor of float32, (B, D)
            M; no label goes in.
        """
        summed = images + F.linear(mixtures, self.mixing)
        return F.layer_norm(summed, summed.shape[-1:], self.norm_weight, self.norm_bias, NORM_EPSILON)

    def head(self, m: Tensor) -> Tensor:
        """Logits of C, (B, K)."""
        return F.linear(m, self.head_weight, self.head_bias)

    def mixtures(self, images: NDArray[np.float32]) -> Tensor:
        """A T in the coordinates of the span, (n, r) float32; constant during training."""
        texts = self.texts.numpy().astype(np.float64)
        mixed = attention(images, texts, self.temperature) @ texts @ self.span.numpy().T
        return torch.from_numpy(mixed.astype(np.float32))

    def weights(self, view: str) -> FocusWeights:
        """Copy of everything that `stages.focus.focus` needs."""
        learned = {name: value.detach().numpy().copy() for name, value in self.named_parameters()}
        return FocusWeights(np.array([self.temperature], np.float32), self.span.numpy().copy(), **learned, view=view)


def train(
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    labels: NDArray[np.int64],
    settings: FusionSettings,
    seed: int,
) -> tuple[FocusWeights, list[EpochLoss]]:
    """Train F and C with AdamW and a cosine schedule, on one thread, without any global random state.

    Parameters
    ----------
    images : ndarray of float32, (n, D)
        I of the training subset.
    texts : ndarray of float32, (K, D)
        T, the whole bank.
    labels : ndarray of int64, (n,)
        Class index of each image; enters the loss alone.
    settings : FusionSettings
        Temperature, loss weight and optimiser.
    seed : int
        Of the head's initial weights and of the order of batches.

    Returns
    -------
    tuple[FocusWeights, list[EpochLoss]]
        Weights after the last epoch, and one entry an epoch.

    Raises
    ------
    ConfigError
        If the loss stops being finite.
    """
    with one_thread():
        generator = torch.Generator().manual_seed(seed)
        model = FocusModel(texts, settings.temperature, generator)
        unit = torch.from_numpy(unit_rows(images).astype(np.float32))
        examples = (unit, model.mixtures(images), torch.from_numpy(labels))
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs)
        history = []
        for epoch in range(settings.epochs):
            order = torch.randperm(len(labels), generator=generator)
            history.append(_epoch(model, optimizer, examples, torch.split(order, settings.batch_items), settings))
            schedule.step()
            if not math.isfinite(history[-1].loss):
                raise ConfigError(
                    f"The loss of fusion is {history[-1].loss} after epoch {epoch + 1}.", "Lower fusion.learning_rate."
                )
        return model.weights(settings.view), history


def _epoch(
    model: FocusModel,
    optimizer: torch.optim.Optimizer,
    examples: tuple[Tensor, Tensor, Tensor],
    batches: tuple[Tensor, ...],
    settings: FusionSettings,
) -> EpochLoss:
    """One pass over the training subset."""
    total = torch.zeros(2)
    share = settings.contrastive_weight
    for batch in batches:
        images, mixtures, labels = (part[batch] for part in examples)
        m = model(images, mixtures)
        contrastive = contrastive_loss(m, model.texts, labels, model.temperature)
        cross_entropy = F.cross_entropy(model.head(m), labels)
        optimizer.zero_grad()
        (share * contrastive + (1 - share) * cross_entropy).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += len(batch) * torch.stack([contrastive.detach(), cross_entropy.detach()])
    means = (total / sum(len(batch) for batch in batches)).tolist()
    return EpochLoss(share * means[0] + (1 - share) * means[1], *means)
