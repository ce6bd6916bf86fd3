"""CLIP-LoRA (Zanella and Ben Ayed, arXiv 2405.18541): low-rank updates of q, k and v in both towers of a CLIP model.

A tower without attention, as the convolutional one of the embedded model, stays frozen, and its vectors are computed
once. Updates are made of the weights rather than beside them, so that dropout leaves out the same entries for a whole
batch; the paper's code draws them anew for every token.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from manifests.errors import ConfigError
from manifests.types import Cell
from stages.base import StageData
from stages.features import readable
from stages.finetune.on_pictures import OnPictures
from stages.finetune.settings import LoraSettings
from stages.finetune.training import CPU_BATCH, crop, random_places, rate
from stages.predictions import ScoredRows, write_results
from stages.splits import Indices, check_fit_rows, class_indices, test_indices, train_indices

if TYPE_CHECKING:
    from stages.models.clip import ClipModel

LEAST_SHARE: Final = 5e-3
"""Of the learning rate, at the end: 1e-6 of 2e-4."""
REPORTED_EVERY: Final = 100
PARTS: Final[Mapping[str, int]] = {
    "query": 1,
    "key": 1,
    "value": 1,
    "q_proj": 1,
    "k_proj": 1,
    "v_proj": 1,
    "qkv": 3,
}
"""Names of the linear layers of attention, in transformers and timm, and how many of q, k and v each holds."""


class LowRank(nn.Module):
    """A weight and its update, W + scale B A for each of the parts that it holds; B begins at zero.

    Parameters
    ----------
    weight : Tensor, (parts * out, in)
        Frozen.
    parts : int
        How many of q, k and v it holds.
    settings : LoraSettings
        Rank, alpha and dropout.
    generator : torch.Generator
        Source of A, and of dropout.
    """

    def __init__(self, weight: Tensor, parts: int, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        out, width = weight.shape[0] // parts, weight.shape[1]
        # As torch initialises a linear layer, which is what the paper's code does.
        down = (2 * torch.rand(parts, settings.rank, width, generator=generator) - 1) * width**-0.5
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(parts, out, settings.rank, device=weight.device))
        self.scale, self.dropout = settings.alpha / settings.rank, settings.dropout
        self.generator = generator

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        kept = torch.ones(self.down.shape[0], 1, self.down.shape[2])
        if self.training and self.dropout:
            # Drawn from the cell's own numbers: torch's dropout goes on from whatever the process drew before.
            kept = kept.bernoulli_(1 - self.dropout, generator=self.generator) / (1 - self.dropout)
        return weight + self.scale * (self.up @ (self.down * kept.to(self.down.device))).flatten(0, 1)


def attach(tower: nn.Module, settings: LoraSettings, generator: torch.Generator) -> list[nn.Parameter]:
    """Add updates to all attention of a tower, in place; it gives what it gave, and only the updates are trained."""
    tower.requires_grad_(requires_grad=False)
    updates: list[LowRank] = []
    for name, module in list(tower.named_modules()):
        parts = 3 if isinstance(module, nn.MultiheadAttention) else PARTS.get(name.rpartition(".")[2], 0)
        weight = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        if parts and isinstance(getattr(module, weight, None), Tensor):
            updates.append(LowRank(getattr(module, weight), parts, settings, generator))
            parametrize.register_parametrization(module, weight, updates[-1])
    return [parameter for update in updates for parameter in update.parameters()]


class LoraTraining:
    """One model with its updates.

    Parameters
    ----------
    model : ClipModel
        Changed in place.
    names : list[str]
        Readable class names, K.
    settings : LoraSettings
        Of the method.
    generator : torch.Generator
        Source of all that is random.

    Raises
    ------
    ConfigError
        If neither tower has attention.
    """

    def __init__(self, model: ClipModel, names: list[str], settings: LoraSettings, generator: torch.Generator) -> None:
        self._model, self._settings, self._generator = model, settings, generator
        self._image = cast("nn.Module", model.image_tower)
        self._text = model.text_tower
        self._ids = self._text.tokenize([settings.template.replace("{}", name) for name in names])
        self.of_image = attach(self._image, settings, generator)
        self.of_text = attach(self._text.tower, settings, generator)
        if not (self.of_image or self.of_text):
            raise ConfigError(f"{settings.model} has no attention to update.", "Choose a model with a transformer.")
        self._cached: Tensor | None = None

    def train(self, pictures: NDArray[np.uint8], labels: Indices, steps: int) -> list[tuple[int, float]]:
        """Train for so many steps; returns the mean loss of every hundred, or fewer at the end.

        Raises
        ------
        ConfigError
            If the loss stops being finite.
        """
        s, truth = self._settings, torch.from_numpy(labels)
        if not self.of_image:
            self._cached = self._vectors(pictures)
        updates = [*self.of_image, *self.of_text]
        optimizer = torch.optim.AdamW(updates, lr=s.learning_rate, weight_decay=s.weight_decay)
        history: list[tuple[int, float]] = []
        losses: list[float] = []
        order = torch.zeros(0, dtype=torch.int64)
        self._set_training(training=True)
        for step in range(steps):
            if not len(order):
                order = torch.randperm(len(labels), generator=self._generator)
            rows, order = order[: s.batch_items], order[s.batch_items :]
            optimizer.param_groups[0]["lr"] = s.learning_rate * max(LEAST_SHARE, rate(step, steps, 0))
            loss = self._loss(pictures, rows, truth)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            if len(losses) == REPORTED_EVERY or step + 1 == steps:
                history.append((step + 1, sum(losses) / len(losses)))
                losses.clear()
                if not math.isfinite(history[-1][1]):
                    raise ConfigError(f"The loss of CLIP-LoRA is {history[-1][1]}.", "Lower lora.learning_rate.")
        self._set_training(training=False)
        return history

    @torch.no_grad()
    def probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities of whole pictures, (n, K)."""
        logits = self._settings.temperature * self._vectors(pictures) @ self._texts().T
        found: NDArray[np.float64] = logits.double().softmax(dim=1).cpu().numpy()
        return found

    def _set_training(self, *, training: bool) -> None:
        """Let dropout in the updates act or not; the towers themselves stay in evaluation mode."""
        for tower in (self._image, self._text.tower):
            for module in tower.modules():
                if isinstance(module, LowRank):
                    module.train(training)

    def _loss(self, pictures: NDArray[np.uint8], rows: Tensor, truth: Tensor) -> Tensor:
        if self._cached is not None:
            images = self._cached[rows]
        else:
            places = random_places(len(rows), self._settings.smallest_crop, self._generator, self._settings.flip)
            images = self._encode(crop(torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float(), places))
        logits = self._settings.temperature * images @ self._texts().T
        return F.cross_entropy(logits, truth[rows].to(logits.device))

    def _encode(self, pixels: Tensor) -> Tensor:
        vectors = self._model.project(self._image(self._model.normalised(pixels)).pooled)
        return F.normalize(vectors, dim=1)

    @torch.no_grad()
    def _vectors(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Unit vectors of whole pictures, (n, D)."""
        parts = torch.split(torch.from_numpy(pictures), CPU_BATCH)
        return torch.cat([self._encode(part.permute(0, 3, 1, 2).float()) for part in parts])

    def _texts(self) -> Tensor:
        """Unit vectors of the classes, (K, D)."""
        return F.normalize(self._text.encode(self._ids).float(), dim=1)


class ClipLora(OnPictures):
    """One training a fraction and seed, scored once on test.

    Parameters
    ----------
    settings : LoraSettings
        Model, view and hyperparameters.
    context : StageContext
        Fingerprint of the pictures, class names, fractions and seeds.
    """

    name: ClassVar[str] = "lora"
    version: ClassVar[int] = 2
    method: ClassVar[str] = "clip-lora"

    settings: LoraSettings

    def fit(self, cell: Cell, data: StageData, out: Path) -> Mapping[str, float]:
        """Write predictions.csv (test rows only), scores.json, history.csv and updates.safetensors.

        Raises
        ------
        RefusedError
            If there is no training row or no test row.
        ConfigError
            If the loss stops being finite, or the model has no attention.
        """
        from safetensors.torch import save_file

        from stages.models.clip import load_clip

        s, classes = self.settings, self.context.classes
        subset, test = train_indices(data, cell), test_indices(data)
        check_fit_rows(data, subset)
        labels = class_indices(data, subset, classes)
        pictures: NDArray[np.uint8] = data.arrays["picture"]
        generator = torch.Generator().manual_seed(cell.seed)
        model = load_clip(s.model, data.device, "float32")
        training = LoraTraining(model, [readable(name) for name in classes], s, generator)
        shots = min(s.most_shots, math.ceil(len(subset) / len(classes)))
        history = training.train(pictures[subset], labels, s.steps_per_shot * shots)
        probabilities = training.probabilities(pictures[test])
        with (out / "history.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("step", "loss"), *history])
        kinds = {"image": training.of_image, "text": training.of_text}
        updates = {f"{kind}.{i}": p.detach().cpu() for kind, ps in kinds.items() for i, p in enumerate(ps)}
        save_file(updates, out / "updates.safetensors")
        choice = {"loss": history[-1][1], "steps": float(history[-1][0])}
        return write_results(out, cell.method, ScoredRows(data, test, classes), probabilities, len(subset), choice)
