"""A timm backbone with a new head, and SLCA: features of a segmenter as channel attention that differs by place.

SLCA (arXiv 2505.06217) is known here by its abstract alone: "spatially localized channel attention" from a frozen SAM
encoder, injected into a classifier. The form is this project's: at each stage of the classifier
A = sigmoid(W2 ReLU(W1 Z)) with Z the segmenter's features averaged over a grid, and F (1 + A) in place of F.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifests.errors import ConfigError
from stages.models.lite0 import fold_norms

FIRST_STRIDE: Final = 4
"""Stages of the backbone from this stride on are given attention."""
START: Final = 3.0
"""Logit of the attention before training, as it leaves the backbone's features nearly as they are: F (1 + 0.05) in
the residual form, 0.95 F in the other."""
LEAST_STD: Final = 1e-6


class Depth(NamedTuple):
    """What one depth of the segmenter gives, over the training subset."""

    mean: Tensor
    """(C,) float32."""
    std: Tensor
    """(C,) float32, above 0."""

    @classmethod
    def of(cls, features: Tensor) -> Depth:
        """Mean and standard deviation of each channel over images and cells, (n, C, g, g)."""
        flat = features.float().transpose(0, 1).flatten(1)
        return cls(flat.mean(dim=1), flat.std(dim=1, correction=0).clamp(min=LEAST_STD))


class ChannelAttention(nn.Module):
    """A = sigmoid(W2 ReLU(W1 Z)), cell by cell: with one cell the excitation of a squeeze-and-excitation block.

    Parameters
    ----------
    depth : Depth
        Z is standardised by these numbers first.
    out_channels : int
        C' of the classifier's stage.
    reduction : int
        W1 is C -> C / reduction, at least one.
    start : float
        Logit of A before training, whatever Z.
    generator : torch.Generator
        Source of W1; W2 begins at zero.
    """

    def __init__(
        self, depth: Depth, out_channels: int, reduction: int, start: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        channels = len(depth.mean)
        hidden = max(1, channels // reduction)
        self.squeeze, self.excite = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, out_channels, 1)
        bound = channels**-0.5
        with torch.no_grad():
            for parameter in self.squeeze.parameters():
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
            self.excite.weight.zero_()
            nn.init.constant_(_bias(self.excite), start)
        self.register_buffer("mean", depth.mean.view(1, -1, 1, 1))
        self.register_buffer("std", depth.std.view(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Attention of each cell, (B, C, g, g) -> (B, C', g, g), in 0..1."""
        standard = (features - self.get_buffer("mean")) / self.get_buffer("std")
        return torch.sigmoid(self.excite(F.relu(self.squeeze(standard))))


class Classifier(nn.Module):
    """A backbone, its batch norms frozen, and a linear head.

    Parameters
    ----------
    backbone : nn.Module
        Of timm, built with `num_classes=0`, in evaluation mode.
    n_classes : int
        K.
    generator : torch.Generator
        Source of the head's weights.
    """

    def __init__(self, backbone: Any, n_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        fold_norms(backbone)
        self.backbone = backbone.to(memory_format=torch.channels_last)
        width = backbone.num_features
        self.head = nn.Linear(width, n_classes)
        with torch.no_grad():
            self.head.weight.copy_((2 * torch.rand(n_classes, width, generator=generator) - 1) * width**-0.5)
            _bias(self.head).zero_()

    def forward(self, pixels: Tensor, place: Tensor, depths: Sequence[Tensor] = ()) -> Tensor:  # noqa: ARG002
        """Logits, (B, K).

        Parameters
        ----------
        pixels : Tensor of float32, (B, 3, px, px)
            Normalised.
        place : Tensor of float32, (B, 2, 3)
            Which part of each picture they are, as `torch.nn.functional.affine_grid` has it.
        depths : Sequence[Tensor of float32], each (B, C, g, g)
            The segmenter's features of the whole pictures, early to late; only SLCA uses them.
        """
        logits: Tensor = self.head(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))
        return logits

    def parts(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the backbone, and of what is new."""
        old = list(self.backbone.parameters())
        known = {id(parameter) for parameter in old}
        return old, [p for p in self.parameters() if id(p) not in known]


class SlcaClassifier(Classifier):
    """The same with channel attention after each stage of the backbone.

    Parameters
    ----------
    backbone, n_classes, generator
        As for `Classifier`.
    depths : Sequence[Depth]
        Early to late; the backbone's stages share them in that order.
    reduction : int
        See `ChannelAttention`.
    residual : bool
        F (1 + A); else F A.

    Raises
    ------
    ConfigError
        If the backbone has no stages with maps.
    """

    def __init__(
        self,
        backbone: Any,
        n_classes: int,
        generator: torch.Generator,
        depths: Sequence[Depth],
        *,
        reduction: int,
        residual: bool,
    ) -> None:
        super().__init__(backbone, n_classes, generator)
        stages = stages_of(backbone)
        self.sources = sources(len(stages), len(depths))
        self.residual = residual
        start = -START if residual else START
        parts = [
            ChannelAttention(depths[source], channels, reduction, start, generator)
            for source, (_, channels) in zip(self.sources, stages, strict=True)
        ]
        self.attention = nn.ModuleList(parts)
        self._given: tuple[Tensor, Sequence[Tensor]] | None = None
        for part, source, (name, _) in zip(parts, self.sources, stages, strict=True):
            backbone.get_submodule(name).register_forward_hook(self._injection(part, source))

    def forward(self, pixels: Tensor, place: Tensor, depths: Sequence[Tensor] = ()) -> Tensor:
        """Logits, (B, K); see `Classifier.forward`."""
        self._given = place, depths
        try:
            return super().forward(pixels, place, depths)
        finally:
            self._given = None

    def _injection(self, attention: ChannelAttention, source: int) -> Any:
        """Hook that multiplies a stage's maps by the attention from one depth."""

        def hook(_module: nn.Module, _inputs: Any, features: Tensor) -> Tensor:
            if self._given is None:
                raise RuntimeError("the backbone of an SLCA classifier runs inside its forward alone")
            place, depths = self._given
            channels_last = features.shape[-1] == attention.excite.out_channels != features.shape[1]
            maps = features.permute(0, 3, 1, 2) if channels_last else features
            weights = at(attention(depths[source]), place, maps.shape[2], maps.shape[3])
            out = maps * (1 + weights if self.residual else weights)
            return out.permute(0, 2, 3, 1) if channels_last else out

        return hook


def stages_of(backbone: Any) -> list[tuple[str, int]]:
    """Name and channels of every stage whose maps have a stride of `FIRST_STRIDE` or more.

    Raises
    ------
    ConfigError
        If there is none, as in a plain vision transformer, whose tokens have one resolution.
    """
    infos = [dict(info) for info in getattr(backbone, "feature_info", ())]
    strides = {info["reduction"] for info in infos}
    if len(strides) < 2:
        raise ConfigError(
            f"{type(backbone).__name__} has no stages of falling resolution for SLCA.",
            "Choose a convolutional or Swin backbone in slca.models.",
        )
    return [(info["module"], info["num_chs"]) for info in infos if info["reduction"] >= FIRST_STRIDE]


def sources(n_stages: int, n_depths: int) -> list[int]:
    """Depth of the segmenter for each stage of the classifier, early to late, the first and the last among them."""
    return [round(stage * (n_depths - 1) / max(1, n_stages - 1)) for stage in range(n_stages)]


def at(maps: Tensor, place: Tensor, height: int, width: int) -> Tensor:
    """Values of maps of the whole picture, (B, C, g, g), where the cells of a part lie, (B, C, height, width)."""
    grid = F.affine_grid(place, [len(maps), 1, height, width], align_corners=False)
    return F.grid_sample(maps, grid, mode="nearest", padding_mode="border", align_corners=False)


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    if layer.bias is None:
        raise ValueError("this layer has a bias")
    return layer.bias
