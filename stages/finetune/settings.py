"""Settings of the stages that train a classifier end to end."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stages.base import Settings, some_and_distinct
from stages.methods import PictureView
from stages.models.registry import entry, known_backbones


class Schedule(Settings):
    """How classifiers are trained; fixed, not tuned on any data set."""

    image_px: int | None = Field(default=None, ge=32, le=1024)
    """Side of the square that they see, in pixels; None for the backbone's own. A transformer takes no other."""
    epochs: int = Field(default=50, ge=1)
    """At most; the learning rate falls as a cosine over all of them."""
    min_steps: int = Field(default=100, ge=1)
    """Small subsets get further epochs until there are as many steps."""
    warm_up: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rates rise."""
    patience: float = Field(default=0.2, gt=0, le=1)
    """The training ends when the held-out loss has not fallen for this share of all epochs."""
    folds: int = Field(default=5, ge=2, le=20)
    """One of so many inner folds is held out, to choose the epoch whose weights are kept."""
    batch_items: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of the backbone."""
    head_rate: float = Field(default=1e-3, gt=0)
    """Of the new classifier, and of SLCA's channel attention."""
    weight_decay: float = Field(default=0.05, ge=0)
    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    """Share of the square that a training crop has at least; 1 for no crops."""
    flip: bool = False
    """Mirror half of the training images. Off, because left and right differ in most medical images."""


class Attention(Settings):
    """SLCA: where the channel attention comes from."""

    encoder: str = "sam2-lite0"
    """Segmenter in the registry of weights, frozen."""
    grid: int = Field(default=8, ge=1, le=64)
    """g: cells of the attention along each side; 1 is squeeze-and-excitation by another network's features."""
    reduction: int = Field(default=16, ge=1)
    """The attention is C -> C / reduction -> C' at each depth."""
    form: Literal["residual", "product"] = "residual"
    """F (1 + A), or F A."""


class FinetuneSettings(Schedule):
    """One backbone on one view."""

    model: str = "lite0"
    """Timm model of the registry."""
    view: PictureView = "original"


class SlcaSettings(FinetuneSettings, Attention):
    """The same, with features of a segmenter's encoder as spatially localised channel attention."""


class Lora(Settings):
    """CLIP-LoRA (arXiv 2405.18541): its hyperparameters, which it keeps for every data set."""

    rank: int = Field(default=2, ge=1)
    alpha: float = Field(default=1.0, gt=0)
    """Updates are multiplied by alpha / rank."""
    dropout: float = Field(default=0.25, ge=0, lt=1)
    """Of what goes into an update, in training."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Falls as a cosine to 1e-6."""
    weight_decay: float = Field(default=0.01, ge=0)
    batch_items: int = Field(default=32, ge=1)
    steps_per_shot: int = Field(default=500, ge=1)
    """Steps for each image a class, counted up to `most_shots`."""
    most_shots: int = Field(default=16, ge=1)
    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Share of the square that a training crop has at least; where the image tower is trained."""
    flip: bool = False
    """Mirror half of the training images. The paper does; left and right differ in most medical images."""
    template: str = "a photo of a {}."
    """Has one `{}` for the readable class name."""
    temperature: float = Field(default=100.0, gt=0)
    """tau, CLIP's exp(logit_scale)."""

    @field_validator("template")
    @classmethod
    def _one_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError(f"a template has exactly one {{}}, got {value!r}")
        return value


class LoraSettings(Lora):
    """One two-tower model on one view."""

    model: str = "lite0-minilm"
    """Name in the registry."""
    view: PictureView = "original"


class LoraConfig(Lora):
    """`[lora]`: the model is the embeddings'."""

    views: tuple[PictureView, ...] = ()
    """What it sees, each a method and a branch of its own; none, and it is not run."""


class Backbones(Settings):
    """Which backbones a configuration asks for."""

    models: tuple[str, ...] = ()
    """Timm models of the registry, each a branch of its own."""
    views: tuple[PictureView, ...] = ("original",)
    """What they see, each a method and a branch of its own."""

    _known = field_validator("models")(known_backbones)
    _distinct = field_validator("views")(some_and_distinct)


class FinetuneConfig(Backbones, Schedule):
    """`[finetune]`: plain classifiers, and the schedule of all that are trained end to end."""


class SlcaConfig(Backbones, Attention):
    """`[slca]`: classifiers with channel attention; their schedule is that of `[finetune]`."""

    @field_validator("models")
    @classmethod
    def _with_stages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if plain := [name for name in value if entry(name).architecture.startswith("vit_")]:
            raise ValueError(f"{', '.join(plain)}: a plain vision transformer has no stages of falling resolution")
        return value
