"""Settings of the proposals stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.base import Settings


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
    prompting: Literal["dense", "coarse-to-fine"] = "dense"
    """All points of the grid; or first half as many along each side, then those of the grid that may find more."""
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
    precision: Literal["float32", "bfloat16"] = "float32"
