"""Fusion: train F(T, I) and the head on the vectors of one training subset."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from manifests.types import Cell, StageIdentity
from stages.base import StageContext, StageData
from stages.features import BANK, has_texts, joined_texts, joined_views
from stages.focus import focus, head_logits
from stages.fusion.model import EpochLoss, Examples, Recipe, choose_lambda, train
from stages.fusion.settings import FusionSettings
from stages.methods import TOKENS, VARIANTS, variant_of, views_of
from stages.splits import check_fit_rows, class_indices, train_indices

START_LAMBDA: Final = 0.5
"""lambda of subsets that cannot be folded."""


class Fusion:
    """One training a method, fraction and seed; nothing but its training subset and the text bank goes in.

    Parameters
    ----------
    settings : FusionSettings
        Methods, loss and optimiser.
    context : StageContext
        Fingerprints of the inputs, class names, fractions and seeds.
    """

    name: ClassVar[str] = "fusion"
    version: ClassVar[int] = 3

    def __init__(self, settings: FusionSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context

    @property
    def inputs(self) -> tuple[str, ...]:
        """The image vectors and the text bank."""
        return ("embeddings", "texts")

    def identity(self) -> StageIdentity:
        """Settings, classes in order, fingerprints of the inputs, and the digest of all they committed."""
        settings = self.settings.model_dump(mode="json", exclude={"methods"}) | {"classes": list(self.context.classes)}
        return StageIdentity(self.name, self.version, settings, upstream=dict(self.context.upstream))

    def cells(self) -> tuple[Cell, ...]:
        """Every method with every fraction and seed."""
        return self.context.study.cells(self.settings.methods)

    def needs(self, cell: Cell) -> Mapping[str, Cell]:  # noqa: ARG002  every cell needs the same
        """The text bank."""
        return {"texts": BANK}

    def reads(self, cell: Cell) -> tuple[str, ...]:
        """Vectors, and tokens where the method fuses them."""
        return ("image", "status", *((TOKENS,) if TOKENS in views_of(cell.method) else ()))

    def fit(self, cell: Cell, data: StageData, out: Path) -> Mapping[str, float]:
        """Write weights.safetensors and history.csv.

        Raises
        ------
        RefusedError
            If there is no training row, or vectors and texts do not go together.
        ConfigError
            If the view does not exist, or the loss stops being finite.
        """
        subset = train_indices(data, cell)
        check_fit_rows(data, subset)
        labels = class_indices(data, subset, self.context.classes)
        views = views_of(cell.method, self.settings.view)
        texts, images = joined_texts(data, len(self.context.classes), views), joined_views(data, views)
        groups = [data.rows[i].group_id for i in subset.tolist()]
        examples, chosen = Examples(images[subset], labels, groups), self.settings.contrastive_weight
        start = START_LAMBDA if chosen == "folds" else chosen
        projected = not has_texts(data)
        recipe = Recipe(variant_of(cell.method) or VARIANTS[0], "+".join(views), start, self.settings, projected)
        if chosen == "folds":
            recipe = replace(recipe, contrastive_weight=choose_lambda(examples, texts, recipe, cell.seed))
        weights, history = train(examples, texts, recipe, cell.seed)
        logits = head_logits(weights, focus(weights, texts, examples.images))
        weights.save(out / "weights.safetensors")
        _write_history(out / "history.csv", history)
        return {
            "n_train": len(subset),
            "contrastive_weight": recipe.contrastive_weight,
            "loss": history[-1].loss,
            "loss_contrastive": history[-1].contrastive,
            "loss_cross_entropy": history[-1].cross_entropy,
            "train_accuracy": float((logits.argmax(axis=1) == labels).mean()),
        }


def _write_history(path: Path, history: Sequence[EpochLoss]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("epoch", "loss", "loss_contrastive", "loss_cross_entropy"))
        writer.writerows((e, h.loss, h.contrastive, h.cross_entropy) for e, h in enumerate(history, start=1))
