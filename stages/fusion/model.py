"""Training of F(T, I) and the head C on cached vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

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
from stages.splits import Indices, inner_folds
from stages.threads import one_thread

LAMBDAS: Final = (0.0, 0.25, 0.5, 0.75)
"""Values of lambda that the inner folds choose among; 1 would leave the head untrained."""


@dataclass(frozen=True, slots=True)
class EpochLoss:
    """Mean losses over the images of one epoch."""

    loss: float
    contrastive: float
    cross_entropy: float


@dataclass(frozen=True, slots=True)
class Examples:
    """A training subset."""

    images: NDArray[np.floating]
    """I, (n, D), or tokens, (n, t, D)."""
    labels: Indices
    """Class index of each image, (n,); enters the loss alone."""
    groups: Sequence[str] = ()
    """group_id of each image; needed where lambda is chosen."""

    def of(self, rows: Indices) -> Examples:
        """Some of the images."""
        return Examples(self.images[rows], self.labels[rows], [self.groups[i] for i in rows.tolist()])


class FocusModel(nn.Module):
    """F(T, I) and the head C, trainable; `stages.focus.focus` says what each variant is.

    W of `text-attn`, (D, D) and zero at the start, meets nothing but mixtures A T of the K texts, so it is kept as
    W = V Q with Q the orthonormal basis of the texts' span, (r, D), fixed, and V, (D, r), trained: the same functions
    M, a hundred times fewer numbers. `concat-mlp` reads A T in the coordinates of the same basis. See
    ``docs/decisions/0003-fusion-in-the-span-of-the-texts.md``. Texts of another model meet images through a trained
    projection, T P; A T stays in the span of T.

    Parameters
    ----------
    texts : ndarray of float32, (K, D)
        Bank of class texts T.
    variant : str
        Form of F.
    settings : FusionSettings
        Head, tau and width.
    generator : torch.Generator
        Source of initial weights.
    width : int, optional
        D of the images, where the texts come from another model; None if they share one space.
    """

    def __init__(
        self,
        texts: NDArray[np.float32],
        variant: str,
        settings: FusionSettings,
        generator: torch.Generator,
        width: int | None = None,
    ) -> None:
        super().__init__()
        classes, text_width = texts.shape
        self.variant, self.kind, self.temperature = variant, settings.head, settings.temperature
        self.texts = torch.from_numpy(unit_rows(texts).astype(np.float32))
        self.span = torch.from_numpy(text_span(texts).astype(np.float32))

        def uniform(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(rows, columns, generator=generator) - 1) / math.sqrt(columns))

        self.projection = None if width is None else nn.Parameter(uniform(width, text_width).detach().T.contiguous())
        width = text_width if width is None else width
        if variant == "text-attn":
            self.mixing = nn.Parameter(torch.zeros(width, len(self.span)))
            self.norm_weight = nn.Parameter(torch.ones(width))
            self.norm_bias = nn.Parameter(torch.zeros(width))
        if variant == "concat-mlp":
            self.inner_weight = uniform(settings.hidden, width + len(self.span))
            self.inner_bias = nn.Parameter(torch.zeros(settings.hidden))
            self.outer_weight = uniform(width, settings.hidden)
            self.outer_bias = nn.Parameter(torch.zeros(width))
        out = classes if variant == "logits" else width
        if settings.head == "linear":
            self.head_weight = uniform(classes, out)
            self.head_bias = nn.Parameter((2 * torch.rand(classes, generator=generator) - 1) / math.sqrt(out))
        else:
            self.head_weight = nn.Parameter(torch.eye(classes) if variant == "logits" else self.seen().detach().clone())

    def seen(self) -> Tensor:
        """Texts in the space of the images, (K, D), unit vectors."""
        return self.texts if self.projection is None else F.normalize(self.texts @ self.projection, dim=1)

    def forward(self, images: Tensor, mixtures: Tensor) -> Tensor:
        """M of a batch; no label goes in.

        Parameters
        ----------
        images : Tensor of float32, (B, D) or (B, t, D)
            I, L2-normalised.
        mixtures : Tensor of float32, (B, r) or (B, t, r)
            A T in the coordinates of the span; not read where the texts are projected, because there A is trained.

        Returns
        -------
        Tensor of float32, (B, D); (B, K) for `logits`
        """
        m = self._fuse(images, mixtures)
        return m.mean(dim=1) if m.ndim == 3 else m

    def _fuse(self, images: Tensor, mixtures: Tensor) -> Tensor:
        if self.variant == "none":
            return images
        if self.variant == "logits":
            return images @ self.seen().T
        if self.projection is not None:
            shares = (self.temperature * images @ self.seen().T).softmax(dim=-1)
            mixtures = shares @ (self.texts @ self.span.T)
            if self.variant == "hadamard":
                return images * (shares @ self.seen())
        if self.variant == "hadamard":
            return images * (mixtures @ self.span)
        if self.variant == "concat-mlp":
            hidden = F.linear(torch.cat([images, mixtures], dim=-1), self.inner_weight, self.inner_bias)
            return F.linear(F.gelu(hidden), self.outer_weight, self.outer_bias)
        summed = images + F.linear(mixtures, self.mixing)
        return F.layer_norm(summed, summed.shape[-1:], self.norm_weight, self.norm_bias, NORM_EPSILON)

    def similarity(self, m: Tensor) -> Tensor:
        """tau times the cosines of M with the texts, (B, K); M of `logits` holds the cosines."""
        return self.temperature * (m if self.variant == "logits" else F.normalize(m, dim=1) @ self.seen().T)

    def head(self, m: Tensor) -> Tensor:
        """Logits of C, (B, K)."""
        if self.kind == "cosine":
            return self.temperature * F.normalize(m, dim=1) @ F.normalize(self.head_weight, dim=1).T
        return F.linear(m, self.head_weight, self.head_bias)

    def mixtures(self, images: NDArray[np.floating]) -> Tensor:
        """A T in the coordinates of the span, (n, r) or (n, t, r), float32; constant during training."""
        if self.projection is not None:
            return torch.zeros(*images.shape[:-1], 0)
        texts, span = self.texts.numpy().astype(np.float64), self.span.numpy()
        rows = images.reshape(-1, images.shape[-1])
        mixed = attention(rows, texts, self.temperature) @ (texts @ span.T)
        return torch.from_numpy(mixed.astype(np.float32).reshape(*images.shape[:-1], len(span)))

    def weights(self, views: str) -> FocusWeights:
        """Copy of everything that `stages.focus.focus` needs."""
        tensors = {name: value.detach().numpy().copy() for name, value in self.named_parameters()}
        tensors["temperature"] = np.array([self.temperature], np.float32)
        if self.variant in ("text-attn", "concat-mlp"):
            tensors["span"] = self.span.numpy().copy()
        return FocusWeights(tensors, self.variant, self.kind, views)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained, and how."""

    variant: str
    views: str
    contrastive_weight: float
    """lambda."""
    settings: FusionSettings
    projected: bool = False
    """Whether the texts come from another model than the images."""


def train(
    examples: Examples, texts: NDArray[np.float32], recipe: Recipe, seed: int
) -> tuple[FocusWeights, list[EpochLoss]]:
    """Train F and C with AdamW and a cosine schedule, on one thread, without any global random state.

    Parameters
    ----------
    examples : Examples
        The training subset.
    texts : ndarray of float32, (K, D)
        T, the whole bank.
    recipe : Recipe
        Variant, loss weight and optimiser.
    seed : int
        Of initial weights and of the order of batches.

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
        model, history = _train(examples, texts, recipe, seed)
        return model.weights(recipe.views), history


def choose_lambda(examples: Examples, texts: NDArray[np.float32], recipe: Recipe, seed: int) -> float:
    """The lambda of `LAMBDAS` whose heads have the least mean log-loss on held-out images of inner folds.

    Parameters
    ----------
    examples : Examples
        The training subset.
    texts : ndarray of float32, (K, D)
        T, the whole bank.
    recipe : Recipe
        Its own lambda is taken where a class has fewer than two groups.
    seed : int
        Of the folds, initial weights and order of batches.
    """
    parts = inner_folds(examples.labels, examples.groups, recipe.settings.folds, seed)
    if parts is None:
        return recipe.contrastive_weight

    def loss(weight: float) -> float:
        tried = replace(recipe, contrastive_weight=weight)
        total = 0.0
        for seen, held in parts:
            model, _ = _train(examples.of(seen), texts, tried, seed)
            with torch.no_grad():
                unit, mixtures, labels = _tensors(model, examples.of(held))
                total += float(F.cross_entropy(model.head(model(unit, mixtures)), labels, reduction="sum"))
        return total

    with one_thread():
        return min(LAMBDAS, key=loss)


def _tensors(model: FocusModel, examples: Examples) -> tuple[Tensor, Tensor, Tensor]:
    rows = examples.images.reshape(-1, examples.images.shape[-1])
    unit = torch.from_numpy(unit_rows(rows).astype(np.float32).reshape(examples.images.shape))
    return unit, model.mixtures(examples.images), torch.from_numpy(examples.labels)


def _train(
    examples: Examples, texts: NDArray[np.float32], recipe: Recipe, seed: int
) -> tuple[FocusModel, list[EpochLoss]]:
    settings = recipe.settings
    generator = torch.Generator().manual_seed(seed)
    width = examples.images.shape[-1] if recipe.projected else None
    model = FocusModel(texts, recipe.variant, settings, generator, width)
    tensors = _tensors(model, examples)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.epochs)
    history = []
    for epoch in range(settings.epochs):
        order = torch.randperm(len(examples.labels), generator=generator)
        batches = torch.split(order, settings.batch_items)
        history.append(_epoch(model, optimizer, tensors, batches, recipe.contrastive_weight))
        schedule.step()
        if not math.isfinite(history[-1].loss):
            raise ConfigError(
                f"The loss of fusion is {history[-1].loss} after epoch {epoch + 1}.", "Lower fusion.learning_rate."
            )
    return model, history


def _epoch(
    model: FocusModel,
    optimizer: torch.optim.Optimizer,
    examples: tuple[Tensor, Tensor, Tensor],
    batches: tuple[Tensor, ...],
    share: float,
) -> EpochLoss:
    """One pass over the training subset."""
    total = torch.zeros(2)
    for batch in batches:
        images, mixtures, labels = (part[batch] for part in examples)
        m = model(images, mixtures)
        contrastive = contrastive_loss(model.similarity(m), labels)
        cross_entropy = F.cross_entropy(model.head(m), labels)
        optimizer.zero_grad()
        (share * contrastive + (1 - share) * cross_entropy).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += len(batch) * torch.stack([contrastive.detach(), cross_entropy.detach()])
    means = (total / sum(len(batch) for batch in batches)).tolist()
    return EpochLoss(share * means[0] + (1 - share) * means[1], *means)
