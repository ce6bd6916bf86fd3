"""Settings of the fusion stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.base import Settings
from stages.methods import FOCUS


class FusionSettings(Settings):
    """MedFocusCLIP's F(T, I), head and loss; fixed, not tuned on any data set."""

    methods: tuple[str, ...] = (FOCUS,)
    """Set by the driver to the methods of the probes that need a fusion; outside the fingerprint, because each
    method's cells are units of their own."""
    view: str = "masked"
    """View whose vectors are I, of methods that name none."""
    head: Literal["linear", "cosine"] = "linear"
    """C: a linear layer, or tau times the cosine of M with a vector a class that begins as the class text."""
    temperature: float = Field(default=100.0, gt=0)
    """tau, CLIP's exp(logit_scale), frozen."""
    contrastive_weight: Annotated[float, Field(ge=0, le=1)] | Literal["folds"] = 0.5
    """lambda: the loss is lambda * L_c + (1 - lambda) * L_e; `folds` chooses it by inner folds."""
    folds: int = Field(default=5, ge=2, le=20)
    """Inner folds on which lambda is chosen."""
    hidden: int = Field(default=256, ge=1)
    """Hidden units of `concat-mlp`."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    epochs: int = Field(default=200, ge=1)
    batch_items: int = Field(default=32, ge=1)
