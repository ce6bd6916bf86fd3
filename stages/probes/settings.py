"""Settings of the probes stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.base import Settings

Method = Literal["medfocus", "masked", "original", "constant"]


class ProbesSettings(Settings):
    """How the logistic regression is fitted."""

    methods: tuple[Method, ...] = ("medfocus", "masked", "original", "constant")
    """Outside the fingerprint: each method's cells are units of their own."""
    view: str = "masked"
    """View that `medfocus` and `masked` use."""
    C: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["folds"] = "folds"
    """Inverse regularisation strength, or `folds`: by inner stratified folds inside the training subset."""
    folds: int = Field(default=5, ge=2, le=20)
    normalise: bool = True
    """Scale every feature vector to unit length first."""
    max_iter: int = Field(default=1000, ge=1)
