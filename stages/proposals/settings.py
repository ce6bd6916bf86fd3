"""Settings of the proposals stage."""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from stages.base import Settings
from stages.models.registry import is_adapted

CLIPSEG: Final = "clipseg"


class ProposalsSettings(Settings):
    """How SAM2 is prompted and which of its masks are kept.

    The defaults suit `sam2-lite0` on one CPU core, see its card in `stages/models/data`. With a checkpoint of
    Meta's begin with those of its automatic mask generator: 32 points per side, predicted IoU 0.8, stability 0.95.
    """

    model: str = "sam2-lite0"
    """Name in the registry of weights."""
    canvas_px: int = Field(default=512, ge=64, le=1024, multiple_of=64)
    """Side of the square on which masks live, in pixels."""
    points_per_side: int = Field(default=6, ge=1, le=64)
    """The grid has this number squared of point prompts over the image (never over the padding)."""
    prompting: Literal["dense", "coarse-to-fine", "unprompted"] = "dense"
    """All points of the grid; or first half as many along each side, then those of the grid that may find more; or
    the one mask that the model gives without a prompt, whatever its scores, as adapted models are trained to."""
    min_predicted_iou: float = Field(default=0.4, ge=0, le=1)
    """Candidates below are dropped."""
    min_stability: float = Field(default=0.3, ge=0, le=1)
    """Candidates whose stability score is below are dropped."""
    stability_offset: float = Field(default=1.0, gt=0)
    """Stability is the IoU of the mask at +offset and at -offset on the logits."""
    nms_iou: float = Field(default=0.7, gt=0, le=1)
    """Of two candidates whose boxes overlap more, the better stays."""
    min_region_px: int = Field(default=0, ge=0)
    """Holes and islands of a mask with fewer pixels of the canvas are filled and dropped; 0 leaves all."""
    max_candidates: int = Field(default=32, ge=1, le=256)
    """Best kept candidates by predicted IoU times stability."""
    texts: tuple[str, ...] = Field(
        default=("a lesion", "a tumor", "a nodule", "an organ", "an abnormal region"), min_length=1
    )
    """Only for `clipseg`: each gives one candidate; no class of the data set belongs here."""
    text_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Only for `clipseg`: chance from which on a pixel belongs to a text's mask."""
    precision: Literal["float32", "bfloat16"] = "float32"

    @property
    def by_text(self) -> bool:
        """Whether texts take the place of points."""
        return self.model == CLIPSEG

    def content(self) -> dict[str, Any]:
        """What results depend on, as JSON values."""
        return self.model_dump(mode="json", exclude=None if self.by_text else {"texts", "text_threshold"})

    @model_validator(mode="after")
    def _adapted_is_not_prompted(self) -> Self:
        if is_adapted(self.model) and self.prompting != "unprompted":
            raise ValueError(f"{self.model} takes no prompt, so that prompting is 'unprompted', not {self.prompting!r}")
        return self
