"""Settings of the probes stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from stages.base import Settings, some_and_distinct
from stages.methods import check_method


class ProbesSettings(Settings):
    """How the logistic regression is fitted."""

    methods: tuple[str, ...] = ("medfocus", "masked", "original", "constant")
    """Forms of MedFocusCLIP (`medfocus-hadamard@roi`), `shape`, `constant`, or views of the embeddings, several joined
    by `+`; outside the fingerprint, because each method's cells are units of their own."""
    C: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["folds"] = "folds"
    """Inverse regularisation strength, or `folds`: by inner stratified folds inside the training subset."""
    folds: int = Field(default=5, ge=2, le=20)
    normalise: bool = True
    """Scale every feature vector to unit length first."""
    max_iter: int = Field(default=1000, ge=1)

    _distinct = field_validator("methods")(some_and_distinct)

    @field_validator("methods")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_method(method) for method in value)
