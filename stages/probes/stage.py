"""Probes: logistic regression on frozen features of one training subset, scored once on test."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.types import Cell, StageIdentity
from stages.base import StageContext, StageData
from stages.features import BANK, joined_texts, joined_views
from stages.focus import FocusWeights, focus
from stages.methods import TOKENS, variant_of, views_of
from stages.predictions import ScoredRows, write_results
from stages.probes.linear import frequencies, prepare
from stages.probes.logistic import Fit, fit, rotate
from stages.probes.settings import ProbesSettings
from stages.probes.strength import choose_c
from stages.splits import Indices, check_fit_rows, class_indices, test_indices, train_indices

logger = logging.getLogger(__name__)


class Probes:
    """One probe a method, fraction and seed; all methods see the same rows.

    Parameters
    ----------
    settings : ProbesSettings
        Methods and regularisation.
    context : StageContext
        Fingerprints of the inputs, class names, fractions and seeds.
    """

    name: ClassVar[str] = "probes"
    version: ClassVar[int] = 4

    def __init__(self, settings: ProbesSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context

    @property
    def inputs(self) -> tuple[str, ...]:
        """The image vectors, the text bank and the trained fusion."""
        return ("embeddings", "texts", "fusion")

    def identity(self) -> StageIdentity:
        """Settings but for the methods, classes, fingerprints of the inputs, and the digest of all they committed."""
        settings = self.settings.model_dump(mode="json", exclude={"methods"}) | {"classes": list(self.context.classes)}
        return StageIdentity(self.name, self.version, settings, upstream=dict(self.context.upstream))

    def cells(self) -> tuple[Cell, ...]:
        """Every method with every fraction and seed."""
        return self.context.study.cells(self.settings.methods)

    def needs(self, cell: Cell) -> Mapping[str, Cell]:
        """For MedFocusCLIP the fusion of the same subset and the text bank; nothing for other methods."""
        return {"fusion": cell, "texts": BANK} if variant_of(cell.method) else {}

    def reads(self, cell: Cell) -> tuple[str, ...]:
        """Vectors and shapes, and tokens where the method fuses them."""
        return ("image", "shape", "status", *((TOKENS,) if TOKENS in views_of(cell.method) else ()))

    def fit(self, cell: Cell, data: StageData, out: Path) -> Mapping[str, float]:
        """Write coef.safetensors, predictions.csv (test rows only) and scores.json.

        Raises
        ------
        RefusedError
            If there is no training row or no test row, or inputs do not go together.
        ConfigError
            If a view does not exist.
        """
        classes = self.context.classes
        subset, test = train_indices(data, cell), test_indices(data)
        fitted, choice = self._fit(cell, data, subset)
        probabilities = fitted.probe.probabilities(self.features(cell.method, data, test))
        fitted.probe.save(out / "coef.safetensors")
        return write_results(out, cell.method, ScoredRows(data, test, classes), probabilities, len(subset), choice)

    def _fit(self, cell: Cell, data: StageData, subset: Indices) -> tuple[Fit, dict[str, float | None]]:
        """Fit on the training subset; also C and how the optimisation ended."""
        check_fit_rows(data, subset)
        labels = class_indices(data, subset, self.context.classes)
        n_classes = len(self.context.classes)
        if cell.method == "constant":
            return Fit(frequencies(np.bincount(labels, minlength=n_classes), 0)), {"C": None}
        normalise = self.settings.normalise and cell.method != "shape"
        rotated = rotate(prepare(self.features(cell.method, data, subset), normalise=normalise), labels)
        groups = [data.rows[i].group_id for i in subset.tolist()]
        c, loss = choose_c(rotated, groups, self.settings, cell.seed)
        fitted = fit(rotated, c, n_classes, self.settings.max_iter, normalise=normalise)
        if not fitted.converged:
            logger.warning("%s: gradient %.1e, not converged; raise probes.max_iter", cell.unit, fitted.gradient_norm)
        outcome = {"converged": float(fitted.converged), "gradient_norm": fitted.gradient_norm}
        return fitted, {"C": c, "held_out_loss": loss, **outcome, "iterations": float(fitted.iterations)}

    def features(self, method: str, data: StageData, rows: Indices) -> NDArray[np.floating]:
        """What a method's probe sees of the rows, (n, D), float; `constant` sees nothing, D = 0. No label goes in."""
        if method == "constant":
            return np.zeros((len(rows), 0))
        if method == "shape":
            shape: NDArray[np.float32] = data.arrays["shape"][rows]
            return shape
        if variant_of(method):
            weights = FocusWeights.load(data.artifacts["fusion"] / "weights.safetensors")
            views = weights.views.split("+")
            texts = joined_texts(data, len(self.context.classes), views)
            return focus(weights, texts, joined_views(data, views)[rows])
        return joined_views(data, views_of(method))[rows]
