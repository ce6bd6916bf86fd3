"""Settings of the masks stage."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from stages.base import Settings

Policy = Literal["union", "top1", "clip-rank", "saliency", "center", "box", "none", "supplied"]
Compositing = Literal["masked", "overlay", "binary", "crop", "blur"]

CROPS_TOGETHER: Final = 8
"""Crops that go through the model of `clip-rank` at once."""


class MasksSettings(Settings):
    """How one mask is made, and what the masked image looks like."""

    policy: Policy = "union"
    compositing: Compositing = "masked"
    canvas_px: int = Field(default=512, ge=64, le=1024, multiple_of=64)
    """Side of the square on which masks live, in pixels."""
    min_area_fraction: float = Field(default=0.001, ge=0, le=1)
    """Proposals, and final masks, smaller than this share of the image are not used."""
    max_area_fraction: float = Field(default=0.9, ge=0, le=1)
    """Proposals, and final masks, larger than this share of the image are not used."""
    max_border_fraction: float = Field(default=0.5, ge=0, le=1)
    """Proposals that cover more of the image's border are background."""
    clip_model: str = "lite0-minilm"
    """Only for `clip-rank`: the model that compares crops with `clip_prompts`."""
    clip_prompts: tuple[str, ...] = Field(
        default=("a lesion", "a tumor", "a nodule", "an organ", "an abnormal region"), min_length=1
    )
    """Only for `clip-rank`: what a proposal may show; no class of the data set belongs here."""
    clip_top: int = Field(default=1, ge=1)
    """Only for `clip-rank`: so many of the most similar proposals are taken together."""
