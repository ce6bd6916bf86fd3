"""Texts: the bank of class texts, one vector a class, whatever the images' labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.errors import InventoryError, WeightsError
from manifests.types import Cell, StageIdentity
from stages.base import StageContext, StageData
from stages.features import readable
from stages.models.card import model_card
from stages.models.weights import WeightsFolder
from stages.texts.settings import TextsSettings

PRECISION = "float32"


class Texts:
    """Encode every class in every template and average: T of MedFocusCLIP (arXiv 2501.03839), (K, D).

    Parameters
    ----------
    settings : TextsSettings
        Model, space and templates.
    context : StageContext
        Names of the classes.
    """

    name: ClassVar[str] = "texts"
    version: ClassVar[int] = 1

    def __init__(self, settings: TextsSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context

    @property
    def inputs(self) -> tuple[str, ...]:
        """Nothing: the bank depends on the names of the classes alone."""
        return ()

    def identity(self) -> StageIdentity:
        """Settings, class names in order, and digests of the model's weights."""
        settings = self.settings.model_dump(mode="json") | {"classes": list(self.context.classes)}
        return StageIdentity(self.name, self.version, settings, WeightsFolder().digests(self.settings.model))

    def cells(self) -> tuple[Cell, ...]:
        """The one bank."""
        return (Cell("bank", 1.0, 0),)

    def needs(self, cell: Cell) -> Mapping[str, Cell]:  # noqa: ARG002
        """Nothing from other cell stages."""
        return {}

    def fit(self, cell: Cell, data: StageData, out: Path) -> Mapping[str, float]:  # noqa: ARG002
        """Write bank.npy (K, D) float32 of unit vectors, prompts.json and card.json.

        Raises
        ------
        InventoryError
            If there is no class, or two classes read the same.
        WeightsError
            If weights are missing or altered, or give a vector without direction.
        """
        from stages.models.clip import load_clip

        prompts = class_prompts(self.context.classes, self.settings.templates)
        model = load_clip(self.settings.model, "cpu", PRECISION)
        flat = [text for texts in prompts.values() for text in texts]
        vectors = np.asarray(model.encode_text(flat, self.settings.features))
        bank = average(vectors.reshape(len(prompts), len(self.settings.templates), -1))
        np.save(out / "bank.npy", bank)
        card = model_card(self.settings.model, PRECISION, self.settings.features)
        for file, content in (("prompts.json", prompts), ("card.json", card)):
            (out / file).write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
        return {"classes": len(prompts), "prompts": len(flat)}


def class_prompts(classes: tuple[str, ...], templates: tuple[str, ...]) -> dict[str, list[str]]:
    """Prompts by class name, in the order of the class index.

    Raises
    ------
    InventoryError
        If there is no class, or two classes read the same, so that no text could tell them apart.
    """
    if not classes:
        raise InventoryError("No image has a label, so that there is no class to describe.", "Ingest labelled images.")
    by_text: dict[str, str] = {}
    for name in classes:
        other = by_text.setdefault(readable(name), name)
        if other != name:
            raise InventoryError(f"Classes {other!r} and {name!r} read the same.", "Rename one of them.")
    return {name: [template.replace("{}", readable(name)) for template in templates] for name in classes}


def average(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean direction over templates.

    Parameters
    ----------
    vectors : ndarray of float32, (K, templates, D)
        L2-normalised.

    Returns
    -------
    ndarray of float32, (K, D)
        L2-normalised.

    Raises
    ------
    WeightsError
        If a class has no direction: a vector is not finite, or the templates cancel.
    """
    mean = vectors.mean(axis=1, dtype=np.float64)
    lengths = np.linalg.norm(mean, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise WeightsError("The text tower gave a vector that is not finite or has no length.", "Check its weights.")
    bank: NDArray[np.float32] = (mean / lengths).astype(np.float32)
    return bank
