"""CoOp (Zhou et al., arXiv 2109.01134) and CoCoOp (arXiv 2203.05557): prompts whose first tokens are learned.

Image vectors are cached, so that neither method sees augmented images, which the authors' code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from manifests.errors import ConfigError
from stages.models.clip import ClipModel
from stages.models.registry import Features
from stages.threads import one_thread

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
WARM_UP_RATE: Final = 1e-5
"""Of the first epoch; then a cosine over all epochs."""
BATCH: Final = 32
FEW, SOME, MANY = 50, 100, 200
"""Epochs of CoOp for one image a class, for up to four, and for more; also the first where images are many."""
MANY_IMAGES: Final = 1000
IMAGES_TOGETHER: Final = 8
"""Images whose K prompts go through the text tower at once, where CoCoOp predicts."""


class Prompts(nn.Module):
    """Class prompts with a learned context.

    Parameters
    ----------
    model : ClipModel
        Gives the text tower, frozen, and the device.
    classes : Sequence[str]
        Readable class names, K.
    context : str
        Words whose embeddings the context starts from.
    features : str
        Space of the image vectors.
    temperature : float
        tau.

    Raises
    ------
    ConfigError
        If the tokenizer does not keep the words of the context apart from the class name.
    """

    def __init__(
        self, model: ClipModel, classes: Sequence[str], context: str, features: Features, temperature: float
    ) -> None:
        super().__init__()
        self._model, self._features, self.temperature = model, features, temperature
        tower = model.text_tower
        self.ids = tower.tokenize([f"{context} {name}." for name in classes])
        n_tokens = _shared_tokens(tower.tokenize, context, self.ids)
        start = tower.embedding(self.ids[:1, 1 : 1 + n_tokens])[0].detach().float()
        self.context = nn.Parameter(start.clone())
        self.device = self.context.device

    def texts(self, context: Tensor) -> Tensor:
        """Vectors of the class prompts, (K, D), for a context, (M, d); (B * K, D) for contexts (B, M, d)."""
        ids = self.ids
        if context.ndim == 3:
            ids = ids.repeat(len(context), 1)
            context = context.repeat_interleave(len(self.ids), dim=0)
        vectors = self._model.text_tower.with_context(ids, context)
        return self._model.text_features(vectors.float(), self._features)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of unit vectors, (B, D) -> (B, K)."""
        return self.temperature * images @ self.texts(self.context).T


class ConditionalPrompts(Prompts):
    """Prompts whose context is moved, token by token alike, by what a small network makes of the image.

    Parameters
    ----------
    model, classes, context, features, temperature
        As for `Prompts`.
    width : int
        D of the image vectors; the network is D -> D / 16 -> d.
    generator : torch.Generator
        Source of its initial weights.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: ClipModel,
        classes: Sequence[str],
        context: str,
        features: Features,
        temperature: float,
        *,
        width: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(model, classes, context, features, temperature)
        hidden, out = max(1, width // 16), self.context.shape[1]
        meta = nn.Sequential(_linear(width, hidden, generator), nn.ReLU(), _linear(hidden, out, generator))
        self.meta = meta.to(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of unit vectors, (B, D) -> (B, K)."""
        moved = self.context + self.meta(images)[:, None]
        texts = self.texts(moved).unflatten(0, (len(images), -1))  # type: ignore[no-untyped-call]
        return self.temperature * torch.einsum("bd,bkd->bk", images, texts)


def coop_epochs(n_images: int, n_classes: int) -> int:
    """Epochs of CoOp by the number of images a class, as the authors have them for shots."""
    each = n_images / n_classes
    if each <= 1 or n_images >= MANY_IMAGES:
        return FEW
    return SOME if each <= 4 else MANY


class Steps(NamedTuple):
    """Schedule of a training."""

    rate: float
    """Learning rate after the first epoch."""
    epochs: int
    """The last epoch's weights are kept."""
    batch: int
    """Images a step."""


def train_prompts(
    prompts: Prompts, images: NDArray[np.float32], labels: NDArray[np.int64], steps: Steps, seed: int
) -> float:
    """Train the context, and the network if there is one, by SGD; returns the last epoch's mean loss.

    Parameters
    ----------
    prompts : Prompts
        Changed in place.
    images : ndarray of float32, (n, D)
        Unit vectors of the training subset.
    labels : ndarray of int64, (n,)
        Class index of each image.
    steps : Steps
        Learning rate, epochs, batch.
    seed : int
        Of the order of images.

    Raises
    ------
    ConfigError
        If the loss stops being finite.
    """
    rate, epochs, batch = steps
    x, y = (torch.from_numpy(array).to(prompts.device) for array in (images, labels))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(prompts.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    cosine = [rate * (1 + np.cos(np.pi * epoch / epochs)) / 2 for epoch in range(epochs)]
    mean = float("nan")
    with one_thread():
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = WARM_UP_RATE if epoch == 0 and epochs > 1 else cosine[epoch]
            total = torch.zeros((), dtype=torch.float64, device=prompts.device)
            for rows in torch.split(torch.randperm(len(y), generator=generator), batch):
                loss = F.cross_entropy(prompts(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.detach() * len(rows)
            mean = float(total) / len(y)
            if not np.isfinite(mean):
                raise ConfigError(f"The loss of the prompts is {mean}.", "Lower the learning rate of [baselines].")
    return mean


@torch.no_grad()
def predict(prompts: Prompts, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of unit vectors, (m, D) -> (m, K)."""
    with one_thread():
        together = IMAGES_TOGETHER if isinstance(prompts, ConditionalPrompts) else max(1, len(images))
        logits = [prompts(part) for part in torch.split(torch.from_numpy(images).to(prompts.device), together)]
    found: NDArray[np.float64] = torch.cat(logits).cpu().double().softmax(dim=1).numpy()
    return found


def _shared_tokens(tokenize: Callable[[Sequence[str]], Tensor], context: str, prompts: Tensor) -> int:
    """Tokens of the context, which every prompt has after its beginning."""
    alone, other = tokenize([context])[0], tokenize([f"{context} {context}"])[0]
    same = (alone[: len(other)] == other[: len(alone)]).tolist()
    number = same.index(False) - 1 if False in same else len(same) - 1
    if number < 1 or not bool((prompts[:, 1 : 1 + number] == alone[1 : 1 + number]).all()):
        raise ConfigError(
            f"The tokenizer does not keep {context!r} apart from the class name.", "Choose other words as the context."
        )
    return number


def _linear(width: int, out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's own initial distribution, from a generator of its own."""
    layer, bound = nn.Linear(width, out, device="meta"), width**-0.5
    layer.weight, layer.bias = (
        nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * bound) for shape in ((out, width), (out,))
    )
    return layer
