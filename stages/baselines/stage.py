"""Baselines: one fit a method, fraction and seed, on the same rows as every other method of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.types import Cell, StageIdentity
from stages.base import StageContext, StageData
from stages.baselines.settings import BaselinesSettings
from stages.features import BANK, readable, text_bank, unit_rows, view_vectors
from stages.focus import attention
from stages.models.weights import WeightsFolder
from stages.predictions import ScoredRows, write_results
from stages.splits import Indices, check_fit_rows, class_indices, test_indices, train_indices

if TYPE_CHECKING:
    from stages.baselines.schedule import Fit
    from stages.models.clip import ClipModel

Outcome = tuple[NDArray[np.float64], dict[str, float | None]]
"""Probabilities of the test rows, (n, K), and what was chosen."""


class Baselines:
    """Zero-shot CLIP, Tip-Adapter(-F), CoOp and CoCoOp on cached vectors.

    Parameters
    ----------
    settings : BaselinesSettings
        Methods and hyperparameters.
    context : StageContext
        Fingerprints of the inputs, class names, fractions and seeds.
    """

    name: ClassVar[str] = "baselines"
    version: ClassVar[int] = 3

    def __init__(self, settings: BaselinesSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context

    @property
    def inputs(self) -> tuple[str, ...]:
        """The image vectors and the text bank."""
        return ("embeddings", "texts")

    def identity(self) -> StageIdentity:
        """Settings but for the methods, classes, weights of the text tower, and fingerprints of the inputs."""
        settings = self.settings.model_dump(mode="json", exclude={"methods", "backbones"}) | {
            "classes": list(self.context.classes)
        }
        weights = WeightsFolder().digests(self.settings.model)
        return StageIdentity(self.name, self.version, settings, weights, dict(self.context.upstream))

    def cells(self) -> tuple[Cell, ...]:
        """Every method with every fraction and seed."""
        return self.context.study.cells(self.settings.methods)

    def needs(self, cell: Cell) -> Mapping[str, Cell]:  # noqa: ARG002  every cell needs the same
        """The text bank."""
        return {"texts": BANK}

    def reads(self, cell: Cell) -> tuple[str, ...]:  # noqa: ARG002  every cell reads the same
        """Vectors."""
        return ("image", "status")

    def fit(self, cell: Cell, data: StageData, out: Path) -> Mapping[str, float]:
        """Write predictions.csv (test rows only) and scores.json, and what was learned.

        Raises
        ------
        RefusedError
            If there is no training row or no test row, or vectors and texts do not go together.
        ConfigError
            If the view does not exist, or a loss stops being finite.
        """
        classes = self.context.classes
        subset, test = train_indices(data, cell), test_indices(data)
        check_fit_rows(data, subset)
        run: dict[str, Callable[..., Outcome]] = {
            "zero-shot": self._zero_shot,
            "tip-adapter": self._tip,
            "tip-adapter-f": self._tip,
            "coop": self._prompts,
            "cocoop": self._prompts,
        }
        probabilities, choice = run[cell.method](cell, data, subset, test, out)
        return write_results(out, cell.method, ScoredRows(data, test, classes), probabilities, len(subset), choice)

    def _vectors(self, data: StageData, rows: Indices) -> NDArray[np.float64]:
        return unit_rows(view_vectors(data, self.settings.view)[rows])

    def _texts(self, data: StageData) -> NDArray[np.float64]:
        return unit_rows(text_bank(data, len(self.context.classes)))

    def _zero_shot(self, _cell: Cell, data: StageData, _subset: Indices, test: Indices, _out: Path) -> Outcome:
        return attention(self._vectors(data, test), self._texts(data), self.settings.temperature), {}

    def _tip(self, cell: Cell, data: StageData, subset: Indices, test: Indices, out: Path) -> Outcome:
        from safetensors.numpy import save_file

        from stages.baselines.tip import Subset, tip_adapter

        s, trained = self.settings, cell.method == "tip-adapter-f"
        labels = class_indices(data, subset, self.context.classes)
        examples = Subset(self._vectors(data, subset), labels, [data.rows[i].group_id for i in subset.tolist()])
        tuned = tip_adapter(examples, self._texts(data), s.temperature, folds=s.folds, seed=cell.seed, trained=trained)
        if trained:
            save_file({"keys": tuned.cache.keys.numpy()}, out / "keys.safetensors")
        choice = {"alpha": tuned.alpha, "beta": tuned.beta, "held_out_accuracy": tuned.held_out_accuracy}
        return tuned.probabilities(self._vectors(data, test)), choice

    def prompt_fit(self, cell: Cell, data: StageData, subset: Indices) -> Fit:
        """What CoOp or CoCoOp is trained with in a cell, on the rows of its subset."""
        import torch

        from stages.baselines.prompts import ConditionalPrompts, Prompts
        from stages.baselines.schedule import BATCH, Fit, Steps, coop_epochs

        s, names = self.settings, [readable(name) for name in self.context.classes]
        images = self._vectors(data, subset).astype(np.float32)
        labels = class_indices(data, subset, self.context.classes)
        start = (_model(s.model, data.device), names, s.context, s.features, s.temperature)
        if cell.method == "coop":
            steps = Steps(s.coop_rate, coop_epochs(len(subset), len(names)), BATCH)
            return Fit(Prompts(*start), images, labels, steps, cell.seed)
        generator = torch.Generator().manual_seed(cell.seed)
        prompts = ConditionalPrompts(*start, width=images.shape[1], generator=generator)
        return Fit(prompts, images, labels, Steps(s.cocoop_rate, s.cocoop_epochs, 1), cell.seed)

    def prompt_outcome(self, fit: Fit, loss: float, data: StageData, test: Indices) -> Outcome:
        """What trained prompts say of the test rows."""
        from stages.baselines.prompts import predict

        shown = self._vectors(data, test).astype(np.float32)
        return predict(fit.prompts, shown), {"loss": loss, "epochs": float(fit.steps.epochs)}

    def _prompts(self, cell: Cell, data: StageData, subset: Indices, test: Indices, out: Path) -> Outcome:
        from safetensors.torch import save_file

        from stages.baselines.training import train

        fit = self.prompt_fit(cell, data, subset)
        loss = train(fit)
        learned = {name: value.detach().cpu().contiguous() for name, value in fit.prompts.named_parameters()}
        save_file(learned, out / "prompts.safetensors")
        return self.prompt_outcome(fit, loss, data, test)


@lru_cache(maxsize=1)
def _model(name: str, device: str) -> ClipModel:
    """Load a model once a process; texts are encoded in float32."""
    from stages.models.clip import load_clip

    return load_clip(name, device, "float32")
