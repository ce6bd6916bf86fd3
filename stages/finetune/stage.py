"""Fine-tuning: one classifier a cell, trained end to end on the pictures of its subset, scored once on test."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from manifests.types import Cell
from stages.base import StageData
from stages.finetune.on_pictures import OnPictures
from stages.finetune.settings import FinetuneSettings, SlcaSettings
from stages.models.registry import entry
from stages.models.sam2_card import depth_channels
from stages.predictions import ScoredRows, write_results
from stages.splits import check_fit_rows, class_indices, inner_folds, test_indices, train_indices

if TYPE_CHECKING:
    import torch

    from stages.finetune.classifier import Classifier
    from stages.finetune.training import Epoch, Shown


class Finetune(OnPictures):
    """A timm backbone with a new head.

    Parameters
    ----------
    settings : FinetuneSettings
        Backbone, view and schedule.
    context : StageContext
        Fingerprints of the inputs, class names, fractions and seeds.
    """

    name: ClassVar[str] = "finetune"
    method: ClassVar[str] = "finetune"

    settings: FinetuneSettings

    def fit(self, cell: Cell, data: StageData, out: Path) -> Mapping[str, float]:
        """Write predictions.csv (test rows only), scores.json and history.csv; the weights are not kept.

        Raises
        ------
        RefusedError
            If there is no training row or no test row.
        ConfigError
            If the loss stops being finite, or the backbone does not suit.
        """
        import torch

        from stages.finetune.training import Split, Trainer

        classes = self.context.classes
        subset, test = train_indices(data, cell), test_indices(data)
        check_fit_rows(data, subset)
        labels = class_indices(data, subset, classes)
        parts = inner_folds(labels, [data.rows[i].group_id for i in subset.tolist()], self.settings.folds, cell.seed)
        everything = np.arange(len(subset))
        fit, held = parts[0] if parts else (everything, everything[:0])
        shown = self._shown(data)
        model = self._build(shown.of(subset[fit]), torch.Generator().manual_seed(cell.seed))
        trainer = Trainer(model, self.settings, entry(self.settings.model).mean_std, data.device)
        history = trainer.train(shown.of(subset), labels, Split(fit, held), cell.seed)
        _write_history(out / "history.csv", history)
        probabilities = trainer.probabilities(shown.of(test))
        kept = min(history, key=lambda e: e.held_out) if len(held) else history[-1]
        choice = {
            "epochs": float(len(history)),
            "epoch": float(history.index(kept) + 1),
            "loss": kept.loss,
            "held_out_loss": kept.held_out if len(held) else None,
        }
        return write_results(out, cell.method, ScoredRows(data, test, classes), probabilities, len(subset), choice)

    def _shown(self, data: StageData) -> Shown:
        """What the classifier sees of all rows."""
        from stages.finetune.training import Shown

        return Shown(data.arrays["picture"])

    def _build(self, shown: Shown, generator: torch.Generator) -> Classifier:  # noqa: ARG002  SLCA's needs what is shown
        """A classifier before training; `shown` is what it will be fitted on."""
        from stages.finetune.classifier import Classifier
        from stages.models.timm_files import load_backbone

        return Classifier(load_backbone(self.settings.model), len(self.context.classes), generator)


class Slca(Finetune):
    """The same backbone with features of a segmenter as channel attention.

    Parameters
    ----------
    settings : SlcaSettings
        Backbone, view, schedule and attention.
    context : StageContext
        Fingerprints of the inputs, class names, fractions and seeds.
    """

    name: ClassVar[str] = "slca"
    method: ClassVar[str] = "slca"

    settings: SlcaSettings

    @property
    def inputs(self) -> tuple[str, ...]:
        """The pictures and the segmenter's features."""
        return ("pictures", "grids")

    def reads(self, cell: Cell) -> tuple[str, ...]:
        """The pictures, and every depth."""
        return (*super().reads(cell), *self._depths)

    @property
    def _depths(self) -> list[str]:
        return [f"depth{i}" for i in range(len(depth_channels(self.settings.encoder)))]

    def _shown(self, data: StageData) -> Shown:
        from stages.finetune.training import Shown

        arrays: Mapping[str, Any] = data.arrays
        return Shown(arrays["picture"], [arrays[name] for name in self._depths])

    def _build(self, shown: Shown, generator: torch.Generator) -> Classifier:
        import torch

        from stages.finetune.classifier import Depth, SlcaClassifier
        from stages.models.timm_files import load_backbone

        return SlcaClassifier(
            load_backbone(self.settings.model),
            len(self.context.classes),
            generator,
            [Depth.of(torch.from_numpy(depth)) for depth in shown.depths],
            reduction=self.settings.reduction,
            residual=self.settings.form == "residual",
        )


def _write_history(path: Path, history: Sequence[Epoch]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("epoch", "loss", "held_out_loss"))
        for number, epoch in enumerate(history, start=1):
            writer.writerow((number, epoch.loss, "" if math.isnan(epoch.held_out) else epoch.held_out))
