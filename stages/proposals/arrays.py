"""What the stage stores of one image; no torch."""

from __future__ import annotations

from typing import Final

from manifests.types import ArraySpec
from stages.proposals.settings import ProposalsSettings

SCORES: Final = ("predicted_iou", "stability", "area_fraction", "border_fraction")
"""Columns of the score arrays."""
FIXED: Final = ("center", "box")
"""Fixed prompts: the middle point of the image, and a box around all of it."""
UPSCALED_TOGETHER: Final = 16
"""Masks that are upscaled at once: on a CPU more only leave the cache."""


def output_specs(settings: ProposalsSettings) -> tuple[ArraySpec, ...]:
    """Candidates and fixed masks as packed bits (big-endian along x), their scores, placement, status."""
    side, k, nan = settings.canvas_px, settings.max_candidates, float("nan")
    bits, columns = (side, side // 8), len(SCORES)
    return (
        ArraySpec("candidates", (k, *bits), "uint8", ("candidate", "y", "x_packed"), per_item=True),
        ArraySpec("candidate_scores", (k, columns), "float32", ("candidate", "score"), nan),
        ArraySpec("fixed", (len(FIXED), *bits), "uint8", ("prompt", "y", "x_packed"), per_item=True),
        ArraySpec("fixed_scores", (len(FIXED), columns), "float32", ("prompt", "score"), nan),
        ArraySpec("placement", (4,), "int32", ("side",)),
        ArraySpec("status", (), "uint8"),
    )
