"""Settings of the baselines stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stages.base import Settings, some_and_distinct
from stages.models.registry import Features, known_backbones

Baseline = Literal["zero-shot", "tip-adapter", "tip-adapter-f", "coop", "cocoop"]


class BaselinesSettings(Settings):
    """Which baselines, and on what; hyperparameters are those of the papers, or chosen by inner folds."""

    methods: tuple[Baseline, ...] = ("zero-shot", "tip-adapter", "tip-adapter-f", "coop", "cocoop")
    """Outside the fingerprint: each method's cells are units of their own."""
    backbones: tuple[str, ...] = ()
    """Vision backbones, each with the probes of the original and the masked image; outside the fingerprint, because
    each is a branch of its own."""
    view: str = "original"
    """View whose vectors the methods see."""
    model: str = "lite0-minilm"
    """Name in the registry of weights; the same as the embeddings'."""
    features: Features = "trunk"
    """The space of the vectors; the same as the embeddings'."""
    temperature: float = Field(default=100.0, gt=0)
    """tau, CLIP's exp(logit_scale)."""
    folds: int = Field(default=5, ge=2, le=20)
    """Inner folds on which Tip-Adapter's alpha and beta are chosen."""
    context: str = Field(default="a photo of a", min_length=1)
    """Words before the class name whose embeddings CoOp and CoCoOp start from."""
    coop_rate: float = Field(default=2e-3, gt=0)
    cocoop_rate: float = Field(default=2e-3, gt=0)
    cocoop_epochs: int = Field(default=10, ge=1)

    _distinct = field_validator("methods")(some_and_distinct)

    _known = field_validator("backbones")(known_backbones)
