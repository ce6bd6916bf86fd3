"""Vision backbones of timm without a text tower: from a local weights file, or with random weights that say so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from manifests.errors import WeightsError
from stages.models.checkpoints import load_strictly, read_state
from stages.models.lite0 import load_lite0_state
from stages.models.registry import entry
from stages.models.towers import Bias, TextEncoder, TrunkOutput
from stages.models.weights import WeightsFolder

SEED = 0
"""Of the weights of untrained backbones."""


class TimmTower(nn.Module):
    """A timm model without its classifier: pooled as the model itself pools, tokens are the cells of its last map.

    Parameters
    ----------
    model : nn.Module
        Built with `num_classes=0`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.projection: Tensor = torch.eye(model.num_features)

    def forward(self, pixels: Tensor, bias: Bias | None = None) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, image_px, image_px); no attention can be biased."""
        if bias is not None:
            raise ValueError("bias: the attention of a timm backbone cannot be biased here")
        features = self.model.forward_features(pixels)
        pooled = self.model.forward_head(features, pre_logits=True)
        if features.ndim == 3:  # a vision transformer: class token, patches
            tokens = features[:, self.model.num_prefix_tokens :]
            side = round(tokens.shape[1] ** 0.5)
            return TrunkOutput(pooled, tokens, (side, side))
        channels_last = features.shape[-1] == self.model.num_features
        cells = features if channels_last else features.permute(0, 2, 3, 1)
        return TrunkOutput(pooled, cells.flatten(1, 2), (cells.shape[1], cells.shape[2]))


def load_towers(name: str, _device: str) -> tuple[TimmTower, Any]:
    """Load a backbone; its loader of a text tower only says that there is none.

    Raises
    ------
    WeightsError
        If the file is missing, altered or of another architecture.
    """
    return TimmTower(load_backbone(name)), _no_text


def load_backbone(name: str) -> Any:
    """Load a backbone without its classifier, in evaluation mode.

    Raises
    ------
    WeightsError
        If the file is missing, altered or of another architecture.
    """
    known = entry(name)
    if known.source == "random":
        return build(known.architecture)
    if known.source == "package":
        model = build(known.architecture)
        load_strictly(model, _without_classifier(model, load_lite0_state()), f"the package's file and {name}")
        return model
    return load_checked(known.architecture, WeightsFolder().verified_path(name))


def _no_text() -> TextEncoder:
    raise WeightsError("A vision backbone has no text tower.", "Choose a CLIP model for embeddings.model.")


def build(architecture: str) -> Any:
    """Build a backbone without classifier, with random weights that depend on nothing, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return timm.create_model(architecture, pretrained=False, num_classes=0).eval()


def load_checked(architecture: str, path: Path) -> Any:
    """Build a backbone and load the whole of a file into it but for the classifier.

    Raises
    ------
    WeightsError
        If the file is damaged, holds code or does not fit.
    """
    model = build(architecture)
    load_strictly(model, _without_classifier(model, read_state(path)), f"{path.name} and {architecture}")
    return model


def _without_classifier(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    classifier = f"{model.pretrained_cfg['classifier']}."
    return {key: value for key, value in state.items() if not key.startswith(classifier)}
