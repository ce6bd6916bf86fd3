"""Settings of the probes stage."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from stages.base import Settings, some_and_distinct

WITHOUT_VIEW: Final = ("medfocus", "shape", "constant")
"""Methods that are not named after the views that they join."""


def views_of(method: str) -> tuple[str, ...]:
    """Views whose vectors a method joins: `roi+ring` has two; none for M, the mask's shape and class frequencies."""
    return () if method in WITHOUT_VIEW else tuple(method.split("+"))


def sees_masks(method: str) -> bool:
    """Whether a method's results depend on masks."""
    return method != "constant" and views_of(method) != ("original",)


class ProbesSettings(Settings):
    """How the logistic regression is fitted."""

    methods: tuple[str, ...] = ("medfocus", "masked", "original", "constant")
    """`medfocus`, `shape`, `constant`, or views of the embeddings, several joined by `+`; outside the fingerprint,
    because each method's cells are units of their own."""
    C: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["folds"] = "folds"
    """Inverse regularisation strength, or `folds`: by inner stratified folds inside the training subset."""
    folds: int = Field(default=5, ge=2, le=20)
    normalise: bool = True
    """Scale every feature vector to unit length first."""
    max_iter: int = Field(default=1000, ge=1)

    _distinct = field_validator("methods")(some_and_distinct)
