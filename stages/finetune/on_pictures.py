"""What the stages share that train on pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from manifests.types import Cell, StageIdentity
from stages.base import StageContext
from stages.finetune.settings import FinetuneSettings, LoraSettings
from stages.models.weights import WeightsFolder


class OnPictures:
    """What all stages have in common that train on one view's pictures.

    Parameters
    ----------
    settings : FinetuneSettings or LoraSettings
        Model, view and schedule.
    context : StageContext
        Fingerprints of the inputs, class names, fractions and seeds.
    """

    name: ClassVar[str]
    method: ClassVar[str]
    """Name of the method on the original image."""
    version: ClassVar[int] = 1

    def __init__(self, settings: FinetuneSettings | LoraSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context

    @property
    def inputs(self) -> tuple[str, ...]:
        """The pictures."""
        return ("pictures",)

    def identity(self) -> StageIdentity:
        """Settings, classes, digests of the model's weights, and fingerprints of the inputs."""
        settings = self.settings.model_dump(mode="json") | {"classes": list(self.context.classes)}
        weights = WeightsFolder().digests(self.settings.model)
        return StageIdentity(self.name, self.version, settings, weights, dict(self.context.upstream))

    def cells(self) -> tuple[Cell, ...]:
        """The method with every fraction and seed."""
        view = self.settings.view
        return self.context.study.cells((self.method if view == "original" else f"{self.method}@{view}",))

    def needs(self, cell: Cell) -> Mapping[str, Cell]:  # noqa: ARG002  none needs another
        """No other cell."""
        return {}

    def reads(self, cell: Cell) -> tuple[str, ...]:  # noqa: ARG002  every cell reads the same
        """The pictures."""
        return ("picture", "status")
