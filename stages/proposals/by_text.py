"""Candidates of a model that is asked by texts: one mask a text, and none for the fixed prompts."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.images import Placement
from stages.proposals.arrays import FIXED
from stages.proposals.candidates import ScoredMasks, best, distinct, score_masks
from stages.proposals.regions import cleaned
from stages.proposals.settings import ProposalsSettings

if TYPE_CHECKING:
    from stages.models.clipseg import TextSegmenter

BELOW_ALL: Final = -1e4
"""Logit of a mask that holds nothing."""


class TextProposer:
    """A loaded CLIPSeg and the rules that make candidates of its masks.

    Parameters
    ----------
    model : TextSegmenter
        Knows the texts.
    settings : ProposalsSettings
        Threshold and limits.
    """

    def __init__(self, model: TextSegmenter, settings: ProposalsSettings) -> None:
        self.model = model
        self.settings = settings
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Time spent by step, since the start."""

    def propose(
        self, canvases: Sequence[NDArray[np.uint8]], placements: Sequence[Placement]
    ) -> Iterator[tuple[ScoredMasks, ScoredMasks]]:
        """Candidates, best first, and empty masks in place of those of fixed prompts.

        A candidate's predicted IoU is the mean chance of its pixels.

        Parameters
        ----------
        canvases : Sequence[ndarray of uint8, (S, S, 3)]
            At least one; RGB.
        placements : Sequence[Placement]
            Where each image lies in its canvas.
        """
        s, began = self.settings, time.perf_counter()
        shift = math.log(s.text_threshold / (1 - s.text_threshold))
        every = self.model.logits(canvases)
        self.seconds["encode"] += time.perf_counter() - began
        for logits, placement in zip(every, placements, strict=True):
            inside = logits > shift
            chances = (torch.sigmoid(logits) * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
            found = score_masks(logits - shift, chances, placement, s.canvas_px, s.stability_offset, s.min_stability)
            kept = found.take((found.scores[:, 0] > s.min_predicted_iou) & (found.scores[:, 2] > 0))
            clean = cleaned(distinct(kept, s.nms_iou), placement, s.min_region_px)
            nothing = torch.full((len(FIXED), *logits.shape[1:]), BELOW_ALL, device=logits.device)
            fixed = score_masks(
                nothing, torch.zeros(len(FIXED)).to(nothing), placement, s.canvas_px, s.stability_offset
            )
            yield best(clean, s.max_candidates), fixed
