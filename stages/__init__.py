"""The science: one folder a stage. The registry maps a stage's name to its class, resolved lazily."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from stages.base import CellStage, MapStage

REGISTRY: dict[str, str] = {
    "proposals": "stages.proposals.stage:Proposals",
    "masks": "stages.masks.stage:Masks",
    "tokens": "stages.embeddings.tokens:Tokens",
    "embeddings": "stages.embeddings.stage:Embeddings",
    "pictures": "stages.pictures.stage:Pictures",
    "grids": "stages.pictures.grids:Grids",
    "texts": "stages.texts.stage:Texts",
    "fusion": "stages.fusion.stage:Fusion",
    "probes": "stages.probes.stage:Probes",
    "baselines": "stages.baselines.stage:Baselines",
    "finetune": "stages.finetune.stage:Finetune",
    "slca": "stages.finetune.stage:Slca",
    "lora": "stages.finetune.lora:ClipLora",
}


def stage_class(name: str) -> type[MapStage] | type[CellStage]:
    """Import and return the class registered under a stage's name.

    Raises
    ------
    KeyError
        If no stage has that name.
    """
    module, attribute = REGISTRY[name].split(":")
    return cast("type[MapStage] | type[CellStage]", getattr(import_module(module), attribute))
