"""Settings of the texts stage."""

from __future__ import annotations

from pydantic import field_validator

from stages.base import Settings
from stages.models.registry import Features


class TextsSettings(Settings):
    """Which prompts make the bank of class texts."""

    model: str = "lite0-minilm"
    """Name in the registry of weights; the same as the embeddings'."""
    features: Features = "trunk"
    """The space of the bank; the same as the embeddings'."""
    templates: tuple[str, ...] = ("This is a photo of {}.",)
    """Each has one `{}` for the readable class name; vectors of several templates are averaged."""

    @field_validator("templates")
    @classmethod
    def _one_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any(t.count("{}") != 1 for t in value):
            raise ValueError(f"each template has exactly one {{}}, got {list(value)}")
        return value
