"""CoOp (Zhou et al., arXiv 2109.01134) and CoCoOp (arXiv 2203.05557): prompts whose first tokens are learned.

Image vectors are cached, so that neither method sees augmented images, which the authors' code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manifests.errors import ConfigError
from stages.models.clip import ClipModel
from stages.models.registry import Features
from stages.threads import one_thread

IMAGES_TOGETHER: Final = {"cpu": 8, "cuda": 64}
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


@torch.no_grad()
def predict(prompts: Prompts, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of unit vectors, (m, D) -> (m, K)."""
    with one_thread():
        at_once = IMAGES_TOGETHER[prompts.device.type]
        together = at_once if isinstance(prompts, ConditionalPrompts) else max(1, len(images))
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
