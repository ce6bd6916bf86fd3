"""Settings of the fusion stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.base import Settings


class FusionSettings(Settings):
    """MedFocusCLIP's F(T, I), head and loss; fixed, not tuned on any data set."""

    variant: Literal["text-attn"] = "text-attn"
    view: str = "masked"
    """View whose vectors are I."""
    temperature: float = Field(default=100.0, gt=0)
    """tau, CLIP's exp(logit_scale), frozen."""
    contrastive_weight: float = Field(default=0.5, ge=0, le=1)
    """lambda: the loss is lambda * L_c + (1 - lambda) * L_e."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    epochs: int = Field(default=200, ge=1)
    batch_items: int = Field(default=32, ge=1)
