"""Settings of the embeddings stage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.base import Settings, some_and_distinct
from stages.models.card import has_attention
from stages.models.registry import Features

View = Literal[
    "original",
    "masked",
    "overlay",
    "binary",
    "crop",
    "blur",
    "roi",
    "ring",
    "inverted",
    "random-box",
    "shuffled",
    "roi-random-box",
    "roi-shuffled",
    "attn-bias",
]


class TokensSettings(Settings):
    """Which model sees the unmasked images; the driver takes them from the embeddings'."""

    model: str = "lite0-minilm"
    features: Features = "trunk"
    resize: Literal["letterbox", "squash", "crop"] = "letterbox"
    canvas_px: int = 512
    precision: Literal["float32", "bfloat16"] = "float32"


class EmbeddingsSettings(Settings):
    """Which model sees which views."""

    model: str = "lite0-minilm"
    """Name in the registry of weights."""
    views: tuple[View, ...] = ("original", "masked")
    features: Features = "trunk"
    """Image features before (`trunk`) or after (`projected`) CLIP's projection."""
    resize: Literal["letterbox", "squash", "crop"] = "letterbox"
    """How an image becomes the model's square: padded, squashed, or CLIP's own centre crop."""
    compositing: Literal["masked", "overlay", "binary", "crop", "blur"] | None = None
    """Set by the driver to `masks.compositing`: the view of that name is read from the masks; None composes it anew."""
    tokens: bool = False
    """Keep the tokens (ViT) or grid cells (CNN) of the original image in a stage of their own, and pool from there."""
    canvas_px: int = Field(default=512, ge=64, le=1024, multiple_of=64)
    """Side of the square on which masks live, in pixels."""
    attention_bias: float = Field(default=4.0, gt=0)
    """Taken off the attention logits of `attn-bias` to a token, times the share of its area outside the mask."""
    attention_blocks: int = Field(default=4, ge=1)
    """Last blocks of the vision transformer in which it is."""
    precision: Literal["float32", "bfloat16"] = "float32"

    def of_tokens(self) -> TokensSettings:
        """The same model and preprocessing."""
        return TokensSettings(**{name: getattr(self, name) for name in TokensSettings.model_fields})

    _distinct = field_validator("views")(some_and_distinct)

    @model_validator(mode="after")
    def _attention_to_bias(self) -> Self:
        if "attn-bias" in self.views and not has_attention(self.model):
            raise ValueError(f"views has 'attn-bias', but {self.model} has no attention; it needs a vision transformer")
        return self
